"""Helpers of the tests of `swinv2-checkpoint`: run directories with checkpoints, and a way to call the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.checkpoint.layout import list_checkpoints
from swinv2_train.cli.checkpoint import main
from swinv2_train.engine.incidents import Incident, write_incident
from swinv2_train.engine.state import TrainState
from tests.checkpoint.written import write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run directory with the checkpoints of four steps."""
    for step, loss in ((10, 0.4), (20, 0.2), (30, 0.3)):
        write(tmp_path / "run" / "checkpoints", step, metrics={"eval/loss": loss}, ema=step != 10)
    write(tmp_path / "run" / "checkpoints", 40)
    return tmp_path / "run"


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A run directory with checkpoints and two incidents: a replay of the later one starts from step 20."""
    directory = tmp_path / "refused"
    for step in (10, 20, 30, 40):
        write(directory / "checkpoints", step, train=TrainState(step=step).to_dict())
    for step in (15, 25):
        incident = Incident(
            step=step + 1, reason="", action="skip", batch=step, loss=1.0, grad_norm=1.0, world_size=1, micro_batch=1,
            micro_losses=[[1.0]], seed=0, samples=[], state=TrainState(step=step).to_dict(), config="",
        )  # fmt: skip
        write_incident(directory, incident)
    return directory


def steps(directory: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(directory / "checkpoints")]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
