"""Run the command blocks of the documentation: bash reads every line, and what it would start is called in here.

A line is read by a real bash, with its quoting, patterns and line ends. Our own commands are functions there that write
down their arguments; the entry points then run in this process, which spares each of them seconds of imports. Whatever
else a line does, bash does.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config import own_parts
from swinv2_train.config.tasks import TASK_SECTIONS

_PREAMBLE = """
set -euo pipefail
{functions}
{line}
"""
_FUNCTION = '{name}() {{ printf "%s\\0" {name} "$@" >"$RECORD"; }}'


def blocks(document: Path) -> list[str]:
    """The text of every block fenced as bash."""
    return re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)


def python_files(document: Path, directory: Path) -> list[Path]:
    """Write every block fenced as python whose first line names a file, such as `# my_tasks/light.py`."""
    written = []
    for name, text in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", document.read_text(), re.DOTALL):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written


def run_python(document: Path) -> dict[str, Any]:
    """Run the other blocks fenced as python, in order, as one notebook; return its variables."""
    variables: dict[str, Any] = {}
    for text in re.findall(r"```python\n(?!# \S+\.py\n)(.*?)```", document.read_text(), re.DOTALL):
        exec(compile(text, str(document), "exec"), variables)
    return variables


@contextmanager
def own_tasks(directory: Path) -> Iterator[None]:
    """Tasks can be imported from a directory, as with it in PYTHONPATH, and are forgotten afterwards."""
    sections = dict(TASK_SECTIONS)
    with pytest.MonkeyPatch.context() as patch:
        # Second, as an entry of PYTHONPATH is: in front, it would count as the working directory.
        patch.setattr(sys, "path", [*sys.path[:1], str(directory), *sys.path[1:]])
        importlib.invalidate_caches()
        try:
            yield
        finally:
            TASK_SECTIONS.clear()
            TASK_SECTIONS.update(sections)
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None)).startswith(f"{directory}/"):
                    forget_parts(name)
                    del sys.modules[name]
                    sys.modules.pop(name.partition(".")[0], None)


def forget_parts(module: str) -> None:
    """The parts of a module are not known any longer."""
    own_parts._plugins.pop(module, None)
    own_parts.function_of.cache_clear()


def lines(block: str) -> Iterator[str]:
    """The commands of a block, one that goes over several lines as one."""
    yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def our_commands() -> dict[str, EntryPoint]:
    """Every command of the package by its name."""
    return {entry.name: entry for entry in entry_points(group="console_scripts") if entry.name.startswith("swinv2-")}


SMALL = ("model.embed_dim=24", "model.num_heads=[1,2,4,8]", "model.depths=[1,1,2,1]")
"""Additional overrides for the runs of the pages: the paper's smallest recipe takes a minute for ten steps here."""
SHORT = {
    "+experiment=own_": ("optim.epochs=10", "optim.warmup_epochs=1"),
    "+experiment=detect_own": ("optim.epochs=2", "optim.warmup_epochs=1", "data.resolution=64"),
    "+experiment=video_own": ("optim.epochs=16", "optim.warmup_epochs=8", "data.resolution=64", "data.frames=4"),
}
"""Additional overrides for the recipes for own images, which take minutes to hours, by the start of an argument."""


def run_block(block: str, directory: Path, monkeypatch: pytest.MonkeyPatch, ran: set[str] | None = None) -> None:
    """Run every line of a block in `directory`, every training run with a small model.

    Args:
        ran: the lines that ran before in this directory, which pages repeat: they do not run again.

    Raises:
        AssertionError: if a line ends with another exit code than 0.
    """
    commands = our_commands()
    functions = "\n".join(_FUNCTION.format(name=name) for name in commands)
    record = directory / ".record"
    monkeypatch.chdir(directory)
    monkeypatch.setenv("RECORD", str(record))
    for line in lines(block):
        command = " ".join(line.partition(" #")[0].split())
        if ran is not None and command in ran:
            continue
        record.unlink(missing_ok=True)
        script = _PREAMBLE.format(functions=functions, line=line)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if record.exists():
            name, *arguments = record.read_text().split("\0")[:-1]
            record.unlink()
            if name == "swinv2-train" and any(item.startswith("run.dir=") for item in arguments):
                starts = [start for start in SHORT if any(item.startswith(start) for item in arguments)]
                arguments += (*SMALL, *(item for start in starts for item in SHORT[start]))
            code: int | str | None = 0
            try:
                commands[name].load()(arguments)
            except SystemExit as end:
                code = end.code
            assert not code, f"{line}: exit code {code}"
        if ran is not None:
            ran.add(command)
