"""A command's end: rank processes that an error leaves in process groups exit with their own code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from swinv2_train.exit_codes import FAILED, INTERRUPTED
from tests.runs import environment

START = "import sys\nfrom swinv2_train.cli.ending import end, prepare_output, run_command\nprepare_output()\n"
JOINED = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""
ABORTS = """
import atexit, os
atexit.register(os.abort)  # as the destructor of a process group may
"""
FORKS = """
import json, os, sys
import torch.distributed
folder = sys.argv[1]
for name, program in json.loads(sys.argv[2]).items():
    if os.fork() == 0:
        for number in (1, 2):
            os.dup2(os.open(f"{folder}/{name}.{number}", os.O_WRONLY | os.O_CREAT), number)
        exec(program, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Each program in a process forked from one that has imported torch: prints the exit codes."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """By case: exit code, output, and errors."""
    folder = tmp_path_factory.mktemp("ended")
    programs = {name: "\n".join((START, JOINED, ABORTS, *lines)) for name, (lines, *_) in CASES.items()}
    command = [sys.executable, "-c", FORKS, str(folder), json.dumps(programs)]
    codes = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.split()
    texts = {name: [(folder / f"{name}.{number}").read_text() for number in (1, 2)] for name in CASES}
    return {name: (int(code), *texts[name]) for name, code in zip(CASES, codes, strict=True)}


CASES: dict[str, tuple[tuple[str, ...], int, str, str | None]] = {
    "code": (("print('one line')", "end(1)"), FAILED, "one line\n", ""),
    "sentence": (
        (
            "from swinv2_train.errors import RunError",
            "def work():\n    raise RunError('no luck')",
            "end(run_command('swinv2-x', work))",
        ),
        FAILED,
        "",
        "swinv2-x: no luck\n",
    ),
    "interrupted": (
        ("def work():\n    raise KeyboardInterrupt", "end(run_command('swinv2-x', work))"),
        INTERRUPTED,
        "",
        "swinv2-x: interrupted\n",
    ),
    "traceback": (
        (
            "def work():\n    print('one line')\n    raise ValueError('https://me:secret@x')",
            "end(run_command('swinv2-x', work))",
        ),
        FAILED,
        "one line\n",
        None,
    ),
}
"""Lines of a program, and its exit code, output, and errors."""


@pytest.mark.parametrize("case", CASES)
def test_a_rank_in_process_groups_skips_their_shutdown(case: str, ended: dict[str, tuple[int, str, str]]) -> None:
    _, code, output, said = CASES[case]
    found = ended[case]
    assert found[:2] == (code, output), found
    if said is None:
        assert "Traceback" in found[2]
        assert found[2].endswith("ValueError: https://***@x\n")  # after "[rank0]: "
    else:
        assert found[2] == said


@pytest.mark.parametrize("how", ["1", "1, whole_process=True"])
def test_a_process_without_torch_shuts_down_in_order(how: str) -> None:
    program = "\n".join((START, "import atexit", "atexit.register(print, 'in order')", f"end({how})"))
    found = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (FAILED, "in order\n")
