"""Output of the tracker in the run directory, on the console, and in TensorBoard, through crash and resume."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from swinv2_train.config.schema import Config, RunConfig, TrackingConfig
from swinv2_train.tracking.console import format_duration
from swinv2_train.tracking.tracker import Tracker


def config(**tracking: Any) -> Config:
    return Config(run=RunConfig(name="proof"), tracking=TrackingConfig(**tracking))


def tracker(
    run_dir: Path, *, start_step: int = 0, terminal: bool = False, **tracking: Any
) -> tuple[Tracker, io.StringIO]:
    """A tracker of a 40-step run, and what it prints."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, height=30, _environ={"TERM": "xterm"})
    made = Tracker(
        run_dir, config(**tracking), total_steps=40, start_step=start_step, is_main=True, console=console
    )  # fmt: skip
    return made, out


def record(step: int, **changed: float | None) -> dict[str, float | int | None]:
    values: dict[str, float | int | None] = {
        "step": step,
        "samples_seen": 32 * step,
        "loss": 1.0 / step,
        "grad_norm": 2.5,
        "lr": 1e-4,
        "images_per_second": 16.0,
        "data_wait_share": 0.125,
        "skipped_steps": 0,
        "memory_gib": 3.25,
        "seconds_left": 74.2,
    }
    return values | changed


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _few_event_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin the numbers of the event files at 0: TensorBoard reads those of one second and process in the order of
    their names, in which 10 is before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tb"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_the_config_as_text_and_as_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run, _ = tracker(tmp_path)
    run.log_steps([record(1)])
    run.close("failed")
    run, _ = tracker(tmp_path, start_step=1)
    run.close("finished")
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    texts = events.Tensors("config/text_summary")
    assert [event.step for event in texts] == [0, 1]
    text = texts[0].tensor_proto.string_val[0].decode()
    assert "    run:\n      name: proof" in text
    tags = events.summary_metadata
    found = {
        name: HParamsPluginData.FromString(tags[f"_hparams_/{name}"].plugin_data.content)
        for name in ("experiment", "session_start_info", "session_end_info")
    }
    values = found["session_start_info"].session_start_info.hparams
    assert values["optim.lr"].number_value == Config().optim.lr
    assert values["model.depths"].string_value == "[2, 2, 6, 2]"
    assert "run.dir" not in values
    metrics = [info.name.tag for info in found["experiment"].experiment.metric_infos]
    assert metrics[0] == "train/loss"
    assert "eval/loss" in metrics


def test_every_step_is_recorded_and_the_last_one_is_printed(tmp_path: Path) -> None:
    run, out = tracker(tmp_path)
    run.log_steps([record(1), record(2), record(3, mask_ratio=0.6, mfu=0.314)])
    run.close("finished")
    assert lines(tmp_path) == [record(1), record(2), record(3, mask_ratio=0.6, mfu=0.314)]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scalars(tmp_path, "train/mask_ratio") == [(3, pytest.approx(0.6))]
    assert scalars(tmp_path, "train/mfu") == [(3, pytest.approx(0.314))]
    progress, closing = out.getvalue().splitlines()
    expected = (
        "step 3/40  loss 0.3333  grad norm 2.500  lr 1.00e-04  16.0 images/s  MFU 31.4%  data wait 12.5%  "
        "memory 3.2 GiB  skipped 0  left 0:01:14"
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d " + re.escape(expected), progress)
    assert closing.endswith("run finished")
    assert (tmp_path / "log.txt").read_text() == out.getvalue()


def test_a_number_that_is_not_known_is_null_and_left_out(tmp_path: Path) -> None:
    run, out = tracker(tmp_path)
    run.log_steps([record(1, grad_norm=None, seconds_left=None)])
    run.close("finished")
    assert lines(tmp_path)[0]["grad_norm"] is None
    assert scalars(tmp_path, "train/lr") == [(1, pytest.approx(1e-4))]
    assert "loss 1.0000  lr 1.00e-04" in out.getvalue()
    assert "left ?" in out.getvalue()
    assert "left out" not in out.getvalue()


def test_nan_is_null_in_the_record_and_nan_on_the_console(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    run.log_steps([record(1, loss=math.nan, grad_norm=math.inf)])
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert (lines(tmp_path)[0]["loss"], lines(tmp_path)[0]["grad_norm"]) == (None, None)
    assert "loss nan  grad norm inf" in out.getvalue()


def test_resume_holds_each_step_once_in_metrics_and_tensorboard(tmp_path: Path) -> None:
    crashed, _ = tracker(tmp_path)
    crashed.log_steps([record(step) for step in range(1, 8)])
    crashed.log_evaluation(6, {"loss": 5.0})
    resumed, out = tracker(tmp_path, start_step=5)
    assert "dropped 3 lines of metrics.jsonl, past step 5 or damaged" in out.getvalue()
    resumed.log_steps([record(step, loss=9.0) for step in (6, 7)])
    resumed.log_evaluation(7, {"loss": 4.0})
    resumed.close("finished")
    assert [(line["step"], line.get("loss")) for line in lines(tmp_path)] == [
        *((step, 1 / step) for step in range(1, 6)), (6, 9.0), (7, 9.0), (7, None)
    ]  # fmt: skip
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert scalars(tmp_path, "train/loss")[5:] == [(6, 9.0), (7, 9.0)]
    assert scalars(tmp_path, "eval/loss") == [(7, 4.0)]


def test_a_restart_from_the_beginning_holds_each_step_once(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        run, _ = tracker(tmp_path)
        run.log_evaluation(0, {"loss": loss})
        run.log_steps([record(1, loss=loss)])
        run.close("failed")
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]
    assert scalars(tmp_path, "eval/loss") == [(0, 2.0)]
    assert scalars(tmp_path, "train/loss") == [(1, 2.0)]


def test_evaluation_is_a_line_of_its_own_with_one_prefix(tmp_path: Path) -> None:
    run, out = tracker(tmp_path)
    run.log_evaluation(10, {"loss": 0.25, "eval/psnr": 21.5})
    assert lines(tmp_path) == [{"step": 10, "eval/loss": 0.25, "eval/psnr": 21.5}]
    assert "evaluation at step 10: eval/loss 0.2500  eval/psnr 21.5000" in out.getvalue()
    run.log_evaluation(20, {"ap": float("nan"), "samples": 6})
    assert "evaluation at step 20: eval/ap none  eval/samples 6" in out.getvalue()


def test_figures_are_files_and_tensorboard_images(tmp_path: Path) -> None:
    run, _ = tracker(tmp_path)
    path = run.log_figure(300, "reconstruction", Image.new("RGB", (20, 10), (10, 200, 30)))
    run.close("finished")
    assert path == tmp_path / "figures" / "reconstruction-step-00000300.png"
    assert list(path.parent.iterdir()) == [path]
    assert Image.open(path).getpixel((0, 0)) == (10, 200, 30)
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("figures/reconstruction")
    assert event.step == 300
    assert Image.open(io.BytesIO(event.encoded_image_string)).getpixel((19, 9)) == (10, 200, 30)


def test_a_terminal_shows_one_live_bar_with_messages_above(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, terminal=True, tensorboard=False)
    run.log_steps([record(10)])
    run.message("a message in between")
    run.log_steps([record(30)])
    run.close("finished")
    shown = out.getvalue()
    assert "━" in shown
    assert "proof" in shown
    assert "75%" in shown
    assert "loss 0.0333" in shown
    # The bar is redrawn in place: the cursor goes up over it, is hidden while it lives and shown at the end.
    assert "\x1b[1A" in shown
    assert shown.index("\x1b[?25l") < shown.rindex("\x1b[?25h")
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log
    assert [line.split(" ", 2)[2][:12] for line in log.splitlines()] == [
        "step 10/40  ", "a message in", "step 30/40  ", "run finished"
    ]  # fmt: skip


def test_plain_output_has_no_control_codes_and_no_broken_lines(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    run.log_steps([record(10, images_per_second=123456.0)])
    run.warn("w" * 300)
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 2
    assert f" warning: {'w' * 300}\n" in out.getvalue()


def test_messages_are_not_markup(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    run.message("bad shard [/red] at data[3] [bold]x")
    assert "bad shard [/red] at data[3] [bold]x" in out.getvalue()


def test_other_ranks_write_nothing_and_warn_with_their_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    run_dir = tmp_path / "run"
    run = Tracker(run_dir, config(wandb="online"), total_steps=40, start_step=5, is_main=False)
    run.log_steps([record(6)])
    run.log_evaluation(6, {"loss": 1.0})
    assert run.log_figure(6, "x", Image.new("L", (2, 2))) == run_dir / "figures" / "x-step-00000006.png"
    run.message("nothing")
    run.warn("a slow disk")
    run.close("finished")
    assert not run_dir.exists()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "[rank 3] warning: a slow disk\n")


def fill_the_disk(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").rename(run_dir / "aside")
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")


def make_room(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "aside").rename(run_dir / "metrics.jsonl")


def test_a_full_disk_is_reported_once_and_loses_nothing(tmp_path: Path) -> None:
    run, out = tracker(tmp_path)
    run.log_steps([record(1)])
    for outage in (1, 2):
        fill_the_disk(tmp_path)
        run.log_steps([record(2 * outage)])
        run.log_steps([record(2 * outage + 1)])
        run.log_evaluation(2 * outage + 1, {"loss": 1.0})
        said = out.getvalue()
        assert said.count("metrics.jsonl cannot be written (No space left on device)") == outage
        assert said.count("can be written again: nothing is missing in it") == outage - 1
        make_room(tmp_path)
        if outage == 1:
            run.log_steps([])  # nothing to say, nothing to try
            run.rewind(3)
        else:
            run.close("finished")
        assert out.getvalue().count("can be written again: nothing is missing in it") == outage
    assert [(line["step"], "loss" in line) for line in lines(tmp_path)] == [
        (1, True), (2, True), (3, True), (3, False), (4, True), (5, True), (5, False)
    ]  # fmt: skip
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]
    assert "LOST" not in out.getvalue()


def test_a_disk_that_is_full_to_the_end_costs_lines_and_says_how_many(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    run.log_steps([record(1)])
    fill_the_disk(tmp_path)
    run.log_steps([record(2), record(3)])
    run.close("stopped")
    said = out.getvalue().splitlines()
    assert said[-2].endswith("metrics.jsonl still cannot be written (No space left on device): lines LOST: 2")
    assert said[-1].endswith("run stopped")


def test_a_figure_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    (tmp_path / "figures").write_text("in the way")
    run.log_figure(3, "x", Image.new("L", (2, 2)))
    assert "warning: " in out.getvalue()
    assert "x-step-00000003.png was not written: File exists" in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    run = Tracker(tmp_path, config(tensorboard=False), total_steps=40, start_step=0, is_main=True, console=console)
    run.log_steps([record(10)])
    assert "step 10/40" in out.getvalue()
    assert "\x1b[1A" not in out.getvalue()


def test_a_log_that_cannot_be_written_does_not_hide_the_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    (tmp_path / "log.txt").symlink_to("/dev/full")
    run.message("first")
    run.message("second")
    assert [line.split(" ", 2)[2] for line in out.getvalue().splitlines()] == ["first", "second"]
    assert capfd.readouterr().err.count("log.txt cannot be written: No space left on device; make room there") == 1


def test_a_broken_copy_is_left_out_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the event writer died")

    run, out = tracker(tmp_path)
    monkeypatch.setattr("swinv2_train.tracking.sinks.TensorBoardSink.scalars", broken)
    run.log_steps([record(1), record(2)])
    run.log_steps([record(3)])
    run.close("finished")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert out.getvalue().count("TensorBoard failed and is disabled from now on: the event writer died") == 1


def test_tensorboard_can_be_switched_off_and_closing_twice_is_one_close(tmp_path: Path) -> None:
    run, out = tracker(tmp_path, tensorboard=False)
    run.log_steps([record(1)])
    run.close("finished")
    run.close("failed")
    run.log_steps([record(2)])
    run.message("still heard")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl"]
    assert [line.split(" ", 2)[2] for line in out.getvalue().splitlines()][1:] == ["run finished", "still heard"]
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.4, "0:00:00"),
        (299, "0:04:59"),
        (36_000, "10:00:00"),
        (90_061, "1 d 01:01:01"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.slow
def test_a_closed_terminal_does_not_end_the_run(tmp_path: Path) -> None:
    """`swinv2-train ... | head`: rich would end the process at the first line that nobody reads."""
    script = (
        "import sys; from pathlib import Path; from swinv2_train.tracking.console import RunConsole\n"
        f"console = RunConsole(Path({str(tmp_path / 'log.txt')!r}), 'run', 1)\n"
        "for number in range(3000): console.message(f'line {number} ' + 'x' * 100)\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 3000


def test_going_back_drops_what_came_after(tmp_path: Path) -> None:
    tracked, _ = tracker(tmp_path)
    tracked.log_evaluation(0, {"loss": 1.0})
    tracked.log_steps([{"step": step, "loss": 0.5} for step in range(1, 6)])
    time.sleep(1.1)  # TensorBoard orders files by the second in their names, and then by a number as text
    tracked.rewind(2)
    tracked.log_steps([{"step": 3, "loss": 0.25}])
    tracked.close("finished")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("loss")) for row in rows] == [(0, None), (1, 0.5), (2, 0.5), (3, 0.25)]
    assert scalars(tmp_path, "train/loss") == [(1, 0.5), (2, 0.5), (3, 0.25)]
