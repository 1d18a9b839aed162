"""The exit codes of the commands."""

from __future__ import annotations

FINISHED = 0
"""Everything that was asked for is done."""
FAILED = 1
"""An error that is not the user's config."""
WRONG_USE = 2
"""A wrong command line, config or data path; one sentence on stderr says which."""
STOPPED = 75
"""A stop signal came: the step was finished and saved, and the same command continues the run (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C before the run began, or a second one during it."""
