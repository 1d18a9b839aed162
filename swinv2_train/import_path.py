"""Import path of child processes: that of this process, without the implicit working directory.

`python -m` and `python -c`, which start the ranks, the fork server of the workers, and the jobs of a sweep, put the
working directory in front. A file there with the name of a module, such as `random.py`, would replace that module.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from itertools import takewhile


def import_variables() -> dict[str, str]:
    """Return the environment variables that give a child with the same Python the import path of this process."""
    library = sysconfig.get_path("stdlib")
    archive = os.path.join(os.path.dirname(library), f"python{sys.version_info.major}{sys.version_info.minor}.zip")
    # Python finds the entries after the standard library by itself. In front of it, they would shadow parts of it.
    front = takewhile(lambda entry: entry not in (library, archive), sys.path)
    places = [os.path.abspath(entry) for entry in front if os.pathsep not in entry]
    places += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


@contextlib.contextmanager
def exported_import_path() -> Iterator[None]:
    """Set these variables for children that a library starts with the environment of this process."""
    variables = import_variables()
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
