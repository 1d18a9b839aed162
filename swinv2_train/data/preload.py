"""The imports of a data worker, made once by the server that workers are forked from."""

from __future__ import annotations

import sys

from swinv2_train.imports import lean_imports
from swinv2_train.quick_exit import exit_quickly

# Workers share the memory of these modules until they write to it, and a collection would write to every object.
with lean_imports():
    import swinv2_train.data.augment
    import swinv2_train.data.loader  # noqa: F401

if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    exit_quickly(0)  # the server ends after the run that it belongs to
