"""The connections of the ranks take open files: they are counted, and the limit is raised or the run refused."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from swinv2_train.errors import MainRankError, RunError
from swinv2_train.launch.open_files import GROUPS, allow_open_files, open_files_needed
from swinv2_train.launch.ranks import join, leave
from tests.engine.apart import Apart


def count_files(result: str) -> None:
    """Join like a run on CPU ranks, with all its groups, and write the open files of this process before and after."""
    before = len(os.listdir("/proc/self/fd"))
    ranks = join("cpu", 1.0)  # two groups
    ranks.another()
    ranks.another()
    found = ranks.gather(len(os.listdir("/proc/self/fd")) - before)
    if ranks.is_main:
        Path(result).write_text(json.dumps(found))
    ranks.barrier()
    leave()


@pytest.mark.slow
def test_the_connections_of_real_ranks_are_those_that_are_counted(tmp_path: Path) -> None:
    """From one number of ranks to another, each new rank takes a file per group, and one more on rank 0."""
    found = {}
    for world_size in (4, 12):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        with Apart(folder) as ranks:
            ranks.start_ranks(world_size, count_files, str(folder / "found.json"))
            assert ranks.exit_codes() == [0] * world_size, ranks.output(0)
        found[world_size] = json.loads((folder / "found.json").read_text())
    groups = GROUPS["cpu"]
    assert found[12][0] - found[4][0] == 8 * (groups + 1)
    assert {found[12][rank] - found[4][1] for rank in range(1, 12)} == {8 * groups}
    others = open_files_needed(12, "cpu") - max(found[12])
    assert 200 < others <= 256, "most of the number for other files must be left, and the rest must be counted"


def test_512_ranks_on_gpus_need_more_than_the_usual_limit() -> None:
    assert open_files_needed(512, "cuda") == 2 * 515 + 512 + 256
    assert open_files_needed(8, "cuda") < 1024


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The limits of a process that stands in for this one, because a lowered hard limit cannot be raised again."""
    held = {"files": (1024, 1024)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: held["files"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: held.update(files=values))
    return held


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 30), (1 << 20, 1 << 30)),
        ((1024, resource.RLIM_INFINITY), (1 << 20, resource.RLIM_INFINITY)),
        ((2000, 4096), (2000, 4096)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
    ],
)
def test_the_limit_is_raised_where_the_ranks_need_it(
    limits: dict[str, tuple[int, int]], before: tuple[int, int], after: tuple[int, int]
) -> None:
    limits["files"] = before
    allow_open_files(512, "cuda", 0)
    assert limits["files"] == after


def test_few_ranks_leave_the_limit_as_it_is(limits: dict[str, tuple[int, int]]) -> None:
    allow_open_files(8, "cuda", 0)
    assert limits["files"] == (1024, 1024)


def test_a_hard_limit_that_is_too_low_is_one_sentence_per_host(limits: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(RunError, match=r"^a rank of 512 needs up to 1798 .* only 1024 \(ulimit -Hn\): raise .*=1798$"):
        allow_open_files(512, "cuda", 0)
    with pytest.raises(MainRankError):
        allow_open_files(512, "cuda", 3)


def join_with_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(os.environ["HARD"])))
    try:
        ranks = join("cpu", 1.0)
    except RunError as error:
        print(type(error).__name__, error, flush=True)
        return
    print("joined", resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
    ranks.barrier()
    leave()


@pytest.mark.parametrize(
    ("hard", "expected"),
    [("400", "joined (400, 400)"), ("300", "joined (300, 300)"), ("80", "RunError a rank of 2 needs up")],
)
def test_a_real_limit_is_raised_or_refused_before_the_ranks_connect(tmp_path: Path, hard: str, expected: str) -> None:
    with Apart(tmp_path) as ranks:
        ranks.start_ranks(2, join_with_few_files, HARD=hard)
        assert ranks.exit_codes() == [0, 0]
        assert ranks.output(0).startswith(expected)
        other = expected if expected.startswith("joined") else "MainRankError"
        assert ranks.output(1).startswith(other)
