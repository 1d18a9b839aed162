"""Ids are stable, safe and short; what is kept of a job is read back, or refused in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.multirun import plan_multirun
from swinv2_train.sweep.job import JOB_FILE, make_job, new_record, read_job, read_jobs, write_job

FIXED = ("+experiment=simmim_demo", "optim.steps=8", "launch.nproc_per_node=2", "sweep.retries=1")
KEYS = frozenset({"experiment", "optim.steps", "launch.nproc_per_node", "sweep.retries"})


def test_an_id_is_readable_and_does_not_depend_on_the_order() -> None:
    swept = ["optim.lr=0.001", "optim.weight_decay=0.05"]
    job = make_job([*FIXED, *swept], KEYS)
    assert re.fullmatch(r"lr_0\.001__weight_decay_0\.05-[0-9a-f]{8}", job.id)
    assert make_job([*reversed(swept), *reversed(FIXED)], KEYS).id == job.id
    assert make_job([*FIXED, "optim.lr=1e-3", "optim.weight_decay=5.0e-2"], KEYS).id == job.id
    assert job.swept == {"optim.lr": "0.001", "optim.weight_decay": "0.05"}


def test_every_override_is_in_the_hash_save_those_that_change_nothing() -> None:
    def name(*overrides: str) -> str:
        return make_job([*overrides, "optim.lr=0.001"], KEYS).id

    assert name(*FIXED) == name(*FIXED[:2], "launch.nproc_per_node=8", "sweep.retries=0")
    assert name(*FIXED) != name(FIXED[0], "optim.steps=9")
    assert make_job([*FIXED, "optim.lr=0.001", "seed=0"], KEYS).id != name(*FIXED)
    ranks = [make_job([*FIXED[:2], f"launch.nproc_per_node={n}"], frozenset(KEYS - {"launch.nproc_per_node"})).id
             for n in (1, 2)]  # fmt: skip
    assert ranks[0] != ranks[1]  # swept over, it tells jobs apart


@pytest.mark.slow
def test_every_job_may_resume_on_data_packed_again_and_keeps_its_id() -> None:
    items = ["+experiment=simmim_demo", "optim.lr=1e-3,5e-4", "optim.steps=60"]
    before, after = (plan_multirun([*items, *more]) for more in ((), ("resume.allow=[data]",)))
    assert after.config.resume.allow == ["data"]
    assert [make_job(job, after.fixed).id for job in after.jobs] == [
        make_job(job, before.fixed).id for job in before.jobs
    ]
    with pytest.raises(ConfigError, match="resume=never: a sweep resumes every job"):
        plan_multirun([*items, "resume=never"])


def test_jobs_that_differ_only_in_what_is_swept_are_a_family() -> None:
    first, second = (make_job([*FIXED, f"optim.lr={rate}"], KEYS) for rate in (1, 2))
    assert first.family == second.family
    assert make_job([FIXED[0], "optim.steps=9", "optim.lr=1"], KEYS).family != first.family


@pytest.mark.parametrize(
    ("swept", "readable"),
    [
        (["+variant=res-post", "seed=1"], "variant_res-post__seed_1"),
        (["data.shards='/data/a b/{0..3}.tar'"], "shards_data-a-b-0..3-.tar"),
        (["a.x=1", "b.x=2"], "a.x_1__b.x_2"),
        (["optim.betas=[0.9,0.99]"], "betas_0.9-0.99"),
        (["optim.lr=0.001263559813738167"], "lr_0.00126356"),
        ([f"model.name={'x' * 300}"], f"name_{'x' * 75}"),
        (["model.name=../../etc"], "name_etc"),
        (["optim.lr=-0.5", "seed=-1"], "lr_-0.5__seed_-1"),
        (["seed=1"], "seed_1"),
        (["data.image=1.2.3"], "image_1.2.3"),
        ([], "job"),
    ],
)
def test_the_readable_part_is_a_file_name(swept: list[str], readable: str) -> None:
    name, _, digest = make_job([*FIXED, *swept], KEYS).id.rpartition("-")
    assert name == readable
    assert len(digest) == 8


def test_a_job_that_an_earlier_version_began_keeps_its_directory(tmp_path: Path) -> None:
    job = make_job([*FIXED, "optim.lr=0.001", "seed=1"], KEYS, tmp_path)
    assert not set(job.id) & set("=,()[]{}'\" ")
    before = f"lr=0.001,seed=1-{job.id[-8:]}"
    (tmp_path / before).mkdir()
    same, other = (make_job([*FIXED, "optim.lr=0.001", f"seed={seed}"], KEYS, tmp_path) for seed in (1, 2))
    assert (same.id, other.id[:-8]) == (before, "lr_0.001__seed_2-")
    write_job(tmp_path / same.id, new_record(same))
    assert [record.id for record in read_jobs(tmp_path)] == [before]


def test_a_run_gets_the_experiment_before_the_sweep_and_what_is_swept() -> None:
    job = make_job(["+variant=post", "seed=0", "+sweep=ablation", "+experiment=classify_demo"], {"sweep", "experiment"})
    assert job.overrides == ("+experiment=classify_demo", "+sweep=ablation", "+variant=post", "seed=0")


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    record = new_record(make_job([*FIXED, "seed=3"], KEYS))
    (tmp_path / record.id).mkdir()
    record.status, record.metric = "finished", 0.5
    write_job(tmp_path / record.id, record)
    assert read_jobs(tmp_path) == [record]
    assert read_job(tmp_path) is None


RECORD = {"id": "a", "overrides": [], "swept": {}, "family": "f"}


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"[]", b"{}", b'{"id": 1}', b"\xff" * 9, b"[" * 100_000, json.dumps(RECORD | {"tries": "x"}).encode(),
        json.dumps(RECORD | {"metric": float("nan")}).encode(), json.dumps(RECORD | {"seconds": 10**400}).encode(),
        json.dumps(RECORD | {"swept": [1]}).encode(), json.dumps(RECORD | {"overrides": None}).encode(), None,
    ],
)  # fmt: skip
def test_a_damaged_file_is_reported_and_ignored(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / JOB_FILE).write_text(json.dumps(RECORD | {"from another version": 1}))
    path = tmp_path / "damaged" / JOB_FILE
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    assert [job.id for job in read_jobs(tmp_path)] == ["a"]
    assert f"ignoring {path}, which is damaged (" in capsys.readouterr().err
    write_job(path.parent, new_record(make_job([*FIXED, "seed=3"], KEYS)))  # also over a folder
    assert len(read_jobs(tmp_path)) == 2
