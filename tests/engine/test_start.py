"""Lines at the start of a run: the decoder, a changed schedule, a run that has finished."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose, to_yaml
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.data import jpeg_part
from swinv2_train.engine.batch_change import continued
from swinv2_train.engine.origin import METRICS, Origin, copy_records
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.start import changed_since, decoder_line, finished_lines, rate_change
from swinv2_train.engine.state import TrainState


@pytest.mark.slow
def test_the_log_names_the_decoder_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*overrides: str) -> str:
        return decoder_line(compose(["data.shards=x", *overrides]))

    if reason := jpeg_part.prepare():
        pytest.skip(reason)
    parts = "JPEG decoder: libjpeg-turbo, only the parts that crops need"
    scaled = ", at a fraction of their size if twice the input size remains"
    assert line() == parts
    assert line("data.scaled_decoding=true") == parts + scaled
    whole = "JPEG decoder: torchvision, entire images"
    assert line("data.scaled_decoding=true", "data.scale=[0,1]") == f"{whole}: data.scale is for stored values"
    assert line("data.crop_decoding=false") == f"{whole}: data.crop_decoding=false"
    assert line("task=classification", "task.repeats=3") == f"{whole}: every image is cropped 3 times (task.repeats)"
    monkeypatch.setattr(jpeg_part, "CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    jpeg_part.prepare.cache_clear()
    assert line() == f"{whole}: there is no C compiler; {jpeg_part.HEADERS}"
    assert line("data.scaled_decoding=true").startswith(
        f"{whole}{scaled} (then PIL); parts are not decoded: there is no"
    )
    jpeg_part.prepare.cache_clear()


def made(steps: int | None, **optim: object) -> Config:
    """A config of 100 samples in batches of 10."""
    config = Config()
    config.optim.global_batch, config.optim.steps = 10, steps
    config.optim.epochs = None if steps else 4.0
    config.optim.warmup_epochs = 0.0
    for key, value in {"schedule": "cosine", "lr": 1e-3, "lr_reference_batch": 10, **optim}.items():
        setattr(config.optim, key, value)
    return config


def test_the_jump_of_a_changed_schedule_is_named(tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.yaml"
    before = made(20)
    resolved.write_text(to_yaml(before))
    plan = make_plan(before, 1, 100)
    for same in (made(20), made(20, clip_norm=1.0), made(None, epochs=2.0)):
        assert rate_change(resolved, same, make_plan(same, 1, 100), TrainState(10)) == []
    for after in (made(40), made(20, lr=1e-4), made(20, schedule="constant")):
        (line,) = rate_change(resolved, after, longer := make_plan(after, 1, 100), TrainState(10))
        last, following = learning_rate(9, before.optim, plan), learning_rate(10, after.optim, longer)
        assert f"goes from {last:.4g} in step 10 to {following:.4g} in step 11" in line
        assert f"the schedule before had {learning_rate(10, before.optim, plan):.4g}" in line
    assert rate_change(tmp_path / "none.yaml", made(40), make_plan(made(40), 1, 100), TrainState(10)) == []


@pytest.mark.parametrize("length", [{"steps": 30}, {"steps": None, "epochs": 4.0}])
def test_a_changed_batch_keeps_the_schedule(tmp_path: Path, length: dict[str, object]) -> None:
    """A resume at the change and a later one report none; a resume with another rate does."""
    state = TrainState(10, samples_seen=100)
    before, after = made(30), made(30)
    for config in (before, after):
        config.optim.lr_reference_batch = 0
        for key, value in length.items():
            setattr(config.optim, key, value)
    after.optim.global_batch = 5
    state.change_batch(10, 5)
    for step, begun in ((10, before), (16, after)):
        state.step = step
        resolved = tmp_path / f"{step}.yaml"
        resolved.write_text(to_yaml(begun))
        plan = continued(make_plan(after, 1, 100), after.optim, state)
        assert rate_change(resolved, after, plan, state) == []
        other = deepcopy(after)
        other.optim.lr *= 2
        assert "the schedule has changed" in rate_change(resolved, other, make_plan(other, 1, 100), state)[0]


def test_settings_are_compared_with_those_of_the_source(tmp_path: Path) -> None:
    before, now = made(20), made(20)
    before.tracking.wandb_project = "swinv2-train"  # the default of earlier versions
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(before))
    assert changed_since(resolved, now) == []
    now.run.name, now.run.dir, now.resume.source, now.optim.clip_norm = "b", "runs/b", "runs/a", 1.5
    (line,) = changed_since(resolved, now, Path("runs/a"))
    assert line.startswith("changed since those of runs/a: optim.clip_norm ")
    assert line.endswith(" -> 1.5")
    before.tracking.wandb_project = "mine"
    resolved.write_text(to_yaml(before))
    assert "changed since the last start: tracking.wandb_project mine -> None" in changed_since(resolved, now)


def test_metrics_of_a_start_without_a_checkpoint_are_put_aside(tmp_path: Path) -> None:
    source, run = Origin(tmp_path / "a", None, branches=True), tmp_path / "b"
    for directory, text in ((source.run_dir, "of the source"), (run, "of an earlier start")):
        directory.mkdir()
        (directory / METRICS).write_text(text)
    (line,) = copy_records(source, run)
    aside = run / line.rpartition(" ")[2]
    assert ((run / METRICS).read_text(), aside.read_text()) == ("of the source", "of an earlier start")


def test_a_finished_run_names_the_ways_to_continue() -> None:
    long = made(1234567)
    for config, option in (
        (made(20), "optim.steps above 20"),
        (long, "above 1234567 "),
        (made(None), "optim.epochs above 4"),
    ):
        config.run.dir = "runs/a"
        plan = make_plan(config, 1, 100)
        first, longer, new = finished_lines(config, plan, plan.total_steps, None)
        assert first == f"the run in runs/a is finished: step {plan.total_steps} of {plan.total_steps}; nothing to do"
        assert option in longer
        assert "init_from=runs/a" in new
        first, longer, _ = finished_lines(config, plan, 2, "eval/loss has not improved")
        assert first.endswith(f"step 2 of {plan.total_steps}, because eval/loss has not improved; nothing to do")
        assert "eval.early_stopping.patience" in longer
