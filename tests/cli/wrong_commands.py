"""The wrong commands of `wrong_commands.txt`, run one after the other in one process without torch.

Prints the file again with what the commands say now:

    python -m tests.cli.wrong_commands > /tmp/wrong_commands.txt
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shlex
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")
GLOBAL = "# @package _global_\n"
EXPERIMENTS = {
    "good": f"{GLOBAL}# Good.\ndefaults:\n  - /experiment/simmim_demo\n",
    "no_package": "# Tiles.\nrun:\n  name: tiles\noptim:\n  lr: 1\n",
    "unknown_key": f"{GLOBAL}# Tiles.\nrun:\n  name: tiles\ndata:\n  mean: dataset\n  resolutoin: 96\n",
    "wrong_type": f"{GLOBAL}# Tiles.\noptim:\n  lr: 1e-3\n  steps: ten\n",
    "wrong_list": f"{GLOBAL}# Tiles.\nmodel:\n  depths: [2, 2, x, 2]\n",
    "not_yaml": f"{GLOBAL}# Tiles.\ndata:\n  mean: [0.5\noptim:\n  lr: 1\n",
    "a_tab": f"{GLOBAL}data:\n\tmean: 1\n",
    "a_list": "- 1\n",
    "no_such_base": f"{GLOBAL}defaults:\n  - /experiment/nothing\n",
}


@dataclass(frozen=True)
class Ended:
    """The end of a command."""

    command: str
    code: int
    output: str
    error: str
    imported: list[str]
    """Slow packages that the process has imported by then."""


def commands(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield each command with the sentence below it and its exit code."""
    lines, code = text.splitlines(), 2
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("## "):
            code = int(line.partition("exit code ")[2] or 2)
        if line.startswith("$ "):
            yield line[2:], "" if after.startswith("$ ") else after, code


def make_files() -> None:
    """Write the files that the commands name into the working directory."""
    Path("file").write_text("text\n")
    Path("void.pth").touch()
    Path("empty").mkdir()
    Path("shards").mkdir()
    with tarfile.open("shards/a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(64):
            tar.addfile(tarfile.TarInfo(f"{number:03d}.jpg"))
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/model").mkdir()
    Path("mine/model/wrong.yaml").write_text("# Wrong.\nembed_dim: 8\ndepths: 3\n")
    for name, text in EXPERIMENTS.items():
        Path(f"mine/experiment/{name}.yaml").write_text(text)
    Path("mine/experiment/latin1.yaml").write_bytes(f"{GLOBAL}run:\n  name: é\n".encode("latin1"))


def ended(command: str) -> Ended:
    """Run a command here."""
    name, *arguments = shlex.split(command)
    output, error, code = io.StringIO(), io.StringIO(), -1
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            importlib.import_module(f"swinv2_train.cli.{name.removeprefix('swinv2-')}").main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            traceback.print_exc()
    imported = [name for name in ("torch", "deepspeed") if name in sys.modules]
    return Ended(command, code, output.getvalue(), error.getvalue(), imported)


def all_ended() -> list[Ended]:
    """Run every command of the file in a new working directory."""
    text, before = FILE.read_text(), Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            make_files()
            return [ended(command) for command, _, _ in commands(text)]
        finally:
            os.chdir(before)


def main() -> None:
    """Print the file."""
    found = {each.command: each for each in all_ended()}
    for line in FILE.read_text().splitlines():
        if not line or line.startswith(("#", "$ ")):
            print(line)
        if line.startswith("$ "):
            print(found[line[2:]].error, end="")


if __name__ == "__main__":
    main()
