"""A line on stderr before the slow part of a command begins."""

from __future__ import annotations

import os
import sys

from swinv2_train.redact import redact


def loading(command: str, what: str) -> None:
    """Report what is being loaded, once for all ranks; the import of torch alone takes seconds."""
    from swinv2_train.launch.signals import PARENT_VARIABLE

    if os.environ.get("RANK", "0") == "0" and PARENT_VARIABLE not in os.environ:
        print(redact(f"{command}: loading {what} ..."), file=sys.stderr, flush=True)
