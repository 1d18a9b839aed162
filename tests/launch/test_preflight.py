"""Preflight: mismatches between ranks are reported with rank and host; matching values are reported once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swinv2_train.data.shards import ShardSet
from swinv2_train.exit_codes import FAILED, FINISHED, WRONG_USE
from swinv2_train.launch.environment import free_port
from swinv2_train.launch.preflight import Facts, _missing_here, _witnesses, differences, warnings
from swinv2_train.launch.ranks import Ranks
from tests.data.samples import write_shards
from tests.faults.job import FaultyRun
from tests.faults.nursery import Nursery
from tests.runs import environment, run_here, tiny_run

GIB = 2**30
ALIKE = Facts(
    rank=0, host="a", code="c0de", config="seed: 0\nlr: 1\n", python="3.11.7", device="CPU",
    packages={"torch": "2.15.0", "wandb": None}, disk_free=100 * GIB, clock=1000.0,
)  # fmt: skip


def ranks(*changes: dict[str, object]) -> list[Facts]:
    """Four ranks, two to a host, with changes to the last ones."""
    facts = [replace(ALIKE, rank=rank, host="ab"[rank // 2]) for rank in range(4)]
    first = len(facts) - len(changes)
    return facts[:first] + [replace(old, **new) for old, new in zip(facts[first:], changes, strict=True)]


def test_ranks_that_are_alike_say_nothing() -> None:
    assert differences(ranks()) == []
    assert warnings(ranks(), GIB) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"packages": {"torch": "2.11.0", "wandb": None}}, "torch 2.11.0, but rank 0 on a has 2.15.0"),
        ({"packages": {"torch": "2.15.0", "wandb": "0.31"}}, "wandb 0.31, but rank 0 on a has none"),
        ({"packages": {"torch": None, "wandb": None}}, "torch is missing, but rank 0 on a has 2.15.0"),
        ({"python": "3.12.1"}, "Python 3.12.1, but rank 0 on a has 3.11.7"),
        ({"code": "beef"}, "its source of swinv2-train is beef, but that of rank 0 on a is c0de"),
        ({"config": "seed: 0\nlr: 2\n"}, "was started with another config than rank 0 on a: lr: 2, but there lr: 1"),
        ({"sees_run_dir": False}, "its run.dir is not that of rank 0 on a: all ranks must share one"),
        ({"problem": "data.shards=x: no such file"}, "data.shards=x: no such file"),
    ],
)
def test_what_differs_is_named_with_rank_and_host(change: dict[str, object], sentence: str) -> None:
    assert differences(ranks(change)) == [f"rank 3 on b: {sentence}"]
    assert differences(ranks(change, change)) == [f"ranks 2, 3 on b: {sentence}"]


def test_a_patch_release_of_python_is_not_a_mismatch() -> None:
    assert differences(ranks({"python": "3.11.9"})) == []


def test_possible_later_failures_are_reported() -> None:
    assert warnings(ranks({"clock": 1007.5}, {"clock": 1007.5}), 0) == ["the clock of a is -7.5 s off"]
    assert warnings(ranks({"disk_free": GIB}, {"disk_free": GIB}), 2 * GIB) == [
        "b has 1.0 GiB free for run.dir, and one checkpoint needs 2.0"
    ]
    assert warnings(ranks({"memory": (10 * GIB, 40 * GIB)}), 0) == [
        "rank 3 on b: 10.0 of 40.0 GiB of its GPU are free; another process uses it"
    ]


def test_one_rank_alone_can_be_asked(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert run_here(tiny_run(shards, run_dir, "launch.preflight_only=true")) == FINISHED
    output = capsys.readouterr().out
    assert "preflight      1 host, 1 rank: swinv2-train" in output
    assert "3 shards opened by the main rank" in output
    assert not any(run_dir.iterdir())


def start(rank: int, port: int, overrides: list[str], **more: str) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}  # as on two hosts
    return subprocess.Popen(
        [sys.executable, "-m", "swinv2_train.cli.train", *overrides],
        env={**environment(), **place, "MASTER_PORT": str(port), **more},
        cwd=more["HOME"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def messages(output: str) -> list[str]:
    """Return the lines of the command, without the one that it loads."""
    own = [line for line in output.splitlines() if line.startswith("swinv2-train:")]
    return [line for line in own if not line.startswith("swinv2-train: loading ")]


@pytest.mark.distributed
def test_a_planted_version_and_a_missing_shard_are_named(shards: Path, tmp_path: Path) -> None:
    """On the second of two ranks, which sees another webdataset, no shards and no run.dir under the same names."""
    (tmp_path / "packages" / "webdataset-9.9.9.dist-info").mkdir(parents=True)
    (tmp_path / "packages" / "webdataset-9.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: webdataset\nVersion: 9.9.9\n"
    )
    for rank in (0, 1):
        (tmp_path / f"home-{rank}").mkdir()
    (tmp_path / "home-0" / "data").symlink_to(shards)
    here = ("data.shards='data/train-*.tar'", "data.eval_shards='data/eval-*.tar'")
    overrides = tiny_run(shards, Path("run"), "launch.preflight_only=true", "data.num_workers=0", *here)
    port = free_port()
    path = f"{tmp_path / 'packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    both = [
        start(0, port, overrides, HOME=str(tmp_path / "home-0")),
        start(1, port, overrides, HOME=str(tmp_path / "home-1"), PYTHONPATH=path),
    ]
    first, second = (process.communicate(timeout=200)[0] for process in both)
    assert [process.returncode for process in both] == [FAILED, FAILED], first + second
    (line,) = messages(first)
    assert "rank 1 on " in line
    assert "webdataset 9.9.9, but rank 0 on " in line
    assert "data/train-0.tar, which the main rank has opened, cannot be read here (No such file or dir" in line
    assert "its run.dir is not that of rank 0 on " in line
    assert messages(second) == []


@pytest.mark.distributed
def test_data_that_only_the_main_rank_opens_end_all_ranks_with_one_sentence(
    shards: Path, nursery: Nursery, tmp_path: Path
) -> None:
    overrides = tiny_run(shards, tmp_path / "run", "data.num_workers=0", f"data.shards={tmp_path}/none-*.tar")
    run = FaultyRun(tmp_path / "run", overrides, nursery)
    assert run.go(2) == WRONG_USE
    assert [path.read_text() for path in sorted(run.trace.glob("*.exit"))] == [str(WRONG_USE)] * 2
    (line,) = messages(run.jobs[0].output)
    assert line == f"swinv2-train: data.shards={tmp_path}/none-*.tar: {tmp_path}/none-*.tar matches no shard"


def test_a_host_looks_for_two_shards_of_each_set(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "train", [1] * 5)
    opened = (ShardSet.open(paths, tmp_path / "cache"), ShardSet.open(paths[:1], tmp_path / "cache"))
    witnesses = _witnesses(opened)
    assert [path for path, _ in witnesses] == [paths[0], paths[4]]
    elsewhere = Ranks(8, 16, 0, torch.device("cpu"), control=None)
    assert _missing_here(elsewhere, witnesses) is None
    Path(paths[4]).write_bytes(b"short")
    found = _missing_here(elsewhere, witnesses)
    assert str(found) == f"{paths[4]} has 5 bytes here, and 10,240 for the main rank: copy the shards again"
    assert _missing_here(Ranks(9, 16, 1, torch.device("cpu"), control=None), witnesses) is None, "one per host looks"
    assert _witnesses(None) == []
