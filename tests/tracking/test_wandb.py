"""Weights & Biases, for real but offline: one run id over a resume, every step in its history, pictures as files."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config, RunConfig, TrackingConfig
from swinv2_train.tracking.sinks import ID_FILE, PROJECT_FILE, _project
from swinv2_train.tracking.tracker import Tracker
from tests.runs import until


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, settings or cache of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    home.mkdir()
    monkeypatch.setattr("swinv2_train.tracking.sinks._LOGIN_SECONDS", 1)


def tracker(run_dir: Path, mode: str, start_step: int = 0) -> tuple[Tracker, io.StringIO]:
    out = io.StringIO()
    tracking = TrackingConfig(wandb=mode, tensorboard=False, wandb_group="g", wandb_tags=["paper", "a b"])
    config = Config(run=RunConfig(name="proof"), tracking=tracking)
    console = Console(file=out)
    return Tracker(run_dir, config, total_steps=9, start_step=start_step, is_main=True, console=console), out


def transaction_log(path: Path) -> Iterator[bytes]:
    """Records of an offline run's log, a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left_in_block = -at % 32768
        if left_in_block and left_in_block < 7:
            at += left_in_block
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def contents(offline_dir: Path) -> tuple[str, dict, list[dict]]:
    """Run id, config (with project and tags) and history of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (log,) = offline_dir.glob("*.wandb")
    run_id, config, history = "", {}, []
    for data in transaction_log(log):
        record = Record.FromString(data)
        if record.HasField("run"):
            run_id = record.run.run_id
            config |= {"project": record.run.project, "tags": sorted(record.run.tags)}
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return run_id, config, history


@pytest.mark.slow
def test_offline_run_keeps_its_id_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    first, out = tracker(run_dir, "offline")
    first.log_steps([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.125}])
    first.log_figure(2, "reconstruction", Image.new("RGB", (8, 8), (255, 0, 0)))
    first.close("stopped")
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    second, _ = tracker(run_dir, "offline", start_step=2)
    second.log_steps([{"step": 3, "loss": 7.0}])
    second.log_evaluation(3, {"loss": 6.0})
    second.close("finished")

    stored = (run_dir / "wandb_id.txt").read_text().strip()
    assert "W&B is offline; upload later with: wandb sync " + str(run_dir) in out.getvalue()
    old, new = sorted(run_dir.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    first_id, config, history = contents(old)
    assert first_id == stored
    assert config["tracking"]["wandb_group"] == "g"
    assert config["model"]["depths"] == [2, 2, 6, 2]
    assert (config["project"], config["tags"]) == ("swinv2-train", ["a b", "paper"])
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == [
        (1, 0.5),
        (2, 0.25),
        (3, 0.125),
    ]
    (picture,) = [row["figures/reconstruction/path"] for row in history if "figures/reconstruction/path" in row]
    assert Image.open(old / "files" / picture).getpixel((0, 0)) == (255, 0, 0)

    until(lambda: contents(new)[0])  # W&B's own process writes it
    second_id, config, history = contents(new)
    assert config["project"] == "swinv2-train", "a run keeps its project"
    assert second_id == stored
    assert [(row["step"], row.get("train/loss"), row.get("eval/loss")) for row in history] == [
        (3, 7.0, None),
        (3, None, 6.0),
    ]


def test_online_without_a_login_is_rejected_with_the_fix(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(
        ConfigError, match=r"tracking\.wandb=online: .* did not start \(.+\); run `wandb login` .*offline"
    ) as caught:
        tracker(run_dir, "online", start_step=1)
    assert "\n" not in str(caught.value)
    assert (run_dir / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_online_without_a_server_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("swinv2_train.tracking.sinks._CONNECT_SECONDS", 2)
    with pytest.raises(ConfigError, match=r"tracking\.wandb=online: .* did not start \(.+\).* tracking\.wandb=offline"):
        tracker(tmp_path / "run", "online")


def test_a_login_that_nobody_answers_is_refused_not_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a terminal W&B asks for a key and, without an answer, goes on disabled; here it is handed such a run.
    import wandb

    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: init(**options | {"mode": "disabled"}))
    with pytest.raises(ConfigError, match=r"tracking\.wandb=online: .*not logged in.* tracking\.wandb=offline"):
        tracker(tmp_path / "run", "online")


def test_a_run_keeps_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "environment")
    stored = tmp_path / PROJECT_FILE
    assert _project(tmp_path, None) == "environment"
    (tmp_path / ID_FILE).write_text("abcd1234\n")
    assert _project(tmp_path, None) == "environment", "W&B refused the first start, so the run has no project yet"
    stored.unlink()
    assert _project(tmp_path, None) == "swinv2-train", "an earlier version began the run"
    stored.write_text("first\n")
    assert (_project(tmp_path, None), _project(tmp_path, "config")) == ("first", "config")
    stored.write_bytes(b"\xff\xfe")
    assert _project(tmp_path, None) == "swinv2-train"
