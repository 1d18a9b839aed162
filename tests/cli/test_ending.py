"""A command's end: rank processes that an error leaves in process groups exit with their own code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swinv2_train.exit_codes import FAILED, INTERRUPTED
from tests.runs import environment

JOINED = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""
ABORTS = """
import atexit, os
atexit.register(os.abort)  # as the destructor of a process group may
"""


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    start = "import sys\nfrom swinv2_train.cli.ending import end, prepare_output, run_command\nprepare_output()\n"
    program = start + "\n".join(lines)
    return subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("lines", "code", "output", "said"),
    [
        (("print('one line')", "end(1)"), FAILED, "one line\n", ""),
        (
            (
                "from swinv2_train.errors import RunError",
                "def work():\n    raise RunError('no luck')",
                "end(run_command('swinv2-x', work))",
            ),
            FAILED,
            "",
            "swinv2-x: no luck\n",
        ),
        (
            ("def work():\n    raise KeyboardInterrupt", "end(run_command('swinv2-x', work))"),
            INTERRUPTED,
            "",
            "swinv2-x: interrupted\n",
        ),
        (
            (
                "def work():\n    print('one line')\n    raise ValueError('https://me:secret@x')",
                "end(run_command('swinv2-x', work))",
            ),
            FAILED,
            "one line\n",
            None,
        ),
    ],
    ids=["code", "sentence", "interrupted", "traceback"],
)
def test_a_rank_in_process_groups_skips_their_shutdown(
    lines: tuple[str, ...], code: int, output: str, said: str | None
) -> None:
    ended = run(JOINED, ABORTS, *lines)
    assert (ended.returncode, ended.stdout) == (code, output), ended.stderr
    if said is None:
        assert "Traceback" in ended.stderr
        assert ended.stderr.endswith("ValueError: https://***@x\n")  # after "[rank0]: "
    else:
        assert ended.stderr == said


def test_a_process_of_its_own_shuts_down_in_order() -> None:
    ended = run("import atexit", "atexit.register(print, 'in order')", "end(1)")
    assert (ended.returncode, ended.stdout) == (FAILED, "in order\n")
