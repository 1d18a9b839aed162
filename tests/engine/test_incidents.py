"""Incidents on disk: none overwrites another, and what is none is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import make_plan
from swinv2_train.engine.guard import Refusal
from swinv2_train.engine.incidents import (
    Incident,
    IncidentLog,
    protector,
    read_incident,
    replay_config,
    write_incident,
)
from swinv2_train.engine.state import TrainState
from tests.engine.threads import on_ranks

INCIDENT = Incident(
    step=12, reason="the loss is nan", action="skip", batch=11, loss=None, grad_norm=None, world_size=1, micro_batch=12,
    micro_losses=[[None]], seed=0, samples=[{"position": 132, "sample": "a/b"}], state=TrainState(step=11).to_dict(),
    config="",
)  # fmt: skip


def test_an_incident_of_another_attempt_gets_a_name_of_its_own(tmp_path: Path) -> None:
    first = write_incident(tmp_path, INCIDENT)
    assert first.name == "step-00000012-batch-00000011.json"
    assert write_incident(tmp_path, INCIDENT) == first, "the same, as after a crash and a resume, is the same file"
    other = replace(INCIDENT, config="optim: {lr: 0.1}")
    second = write_incident(tmp_path, other)
    assert second.name == "step-00000012-batch-00000011-2.json"
    assert write_incident(tmp_path, other) == second
    assert [read_incident(path) for path in (first, second)] == [INCIDENT, other]
    assert json.loads(first.read_text())["loss"] is None, "strict JSON knows no nan"


def test_what_a_replay_needs_is_protected_and_rubbish_is_ignored(tmp_path: Path) -> None:
    assert protector(tmp_path)() == set()
    for step, avoided in ((9, []), (10, [4]), (11, []), (15, [])):
        checkpoint = tmp_path / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        state = TrainState(step=step, avoided_batches=avoided).to_dict()
        (checkpoint / "state.json").write_text(json.dumps({"train": state}))
    write_incident(tmp_path, replace(INCIDENT, step=11, state=TrainState(step=10).to_dict()))
    assert protector(tmp_path)() == {"step-00000009"}, "10 has left out a batch that this step's run had not"
    (tmp_path / "incidents" / "step-00000099-batch-00000098.json").write_text('{"step": 99}')
    assert protector(tmp_path)() == {"step-00000009"}


DAMAGES = {
    "bytes": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "list": b"[]",
    "empty": b"",
    "step": {"step": "12"},
    "huge": {"step": 10**30},
    "no ranks": {"world_size": 0},
    "negative": {"batch": -1},
    "samples": {"samples": [1]},
    "position": {"samples": [{"position": None}]},
    "losses": {"micro_losses": [["a"]]},
    "state": {"state": {"step": None}},
    "state is a list": {"state": []},
    "avoided": {"state": {"step": 3, "avoided_batches": [-1]}},
    "config": {"config": 5},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_incident_is_refused_and_never_overwritten(tmp_path: Path, damage: bytes | dict[str, object]) -> None:
    path = write_incident(tmp_path, INCIDENT)
    data = damage if isinstance(damage, bytes) else json.dumps({**asdict(INCIDENT), **damage}).encode()
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"replay=.* (is not an incident of a run|has impossible numbers)"):
        read_incident(path)
    assert protector(tmp_path)() == set()
    assert read_incident(write_incident(tmp_path, INCIDENT)) == INCIDENT
    assert path.read_bytes() == data


@pytest.mark.slow
def test_an_incident_has_no_credentials_and_its_replay_asks_for_them(tmp_path: Path) -> None:
    url = "https://user:hunter2@example.org/train-{000000..000011}.tar?sig=hunter2"
    config = compose(["+experiment=simmim_demo", f"data.shards='{url}'"])
    plan = make_plan(config, 1, 1000)

    def work(ranks: Any) -> str:
        log = IncidentLog(tmp_path, config, plan, ranks, str)
        return log.record(Refusal("the loss is nan", spike=False), 1.0, 1.0, [1.0], TrainState(step=2, samples_seen=0))

    on_ranks(1, work)
    (path,) = (tmp_path / "incidents").iterdir()
    assert "hunter2" not in path.read_text()
    with pytest.raises(ConfigError, match="contains no credentials") as caught:
        replay_config(path, [])
    assert caught.value.key == "data.shards"
    assert replay_config(path, [f"data.shards={url}"]).data.shards == url
