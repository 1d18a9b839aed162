"""The report: means and spreads that were worked out by hand, the CSV, the figures."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from swinv2_train.config.errors import ConfigError
from swinv2_train.sweep.job import SweepRecord, make_job, new_record, read_sweep, write_job, write_sweep
from swinv2_train.sweep.report import make_report, report_text, write_csv, write_figures
from swinv2_train.sweep.run import LOCKS
from swinv2_train.sweep.survey import survey
from swinv2_train.tracking.sweep_charts import sweep_chart
from tests.sweep.test_values import write

VALUES = {(0.001, 0): 0.50, (0.001, 1): 0.54, (0.001, 2): 0.52, (0.01, 0): 0.40, (0.01, 1): None}


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """Five jobs: three seeds of one rate, one and an unfinished one of another."""
    one = make_job(["optim.steps=8", "optim.lr=0"], {"optim.steps"})
    write_sweep(tmp_path, SweepRecord("trial", "eval/loss", "minimize", "last", one.family, list(one.shared)))
    for (rate, seed), value in VALUES.items():
        job = make_job(["optim.steps=8", f"optim.lr={rate}", f"seed={seed}"], {"optim.steps"})
        record = new_record(job)
        record.status = "finished" if value else "running"
        write(tmp_path / job.id, {4: 9.0, 8: value} if value else {}, "eval/loss")
        write_job(tmp_path / job.id, record)
    return tmp_path


def test_a_row_for_each_combination_with_mean_and_spread_over_the_seeds(swept: Path) -> None:
    report = make_report(*survey(swept), swept)
    best, other = report.rows
    assert (best.values, best.mean, best.spread, best.n) == ({"optim.lr": "0.01"}, 0.40, None, 1)
    assert (other.values, other.n) == ({"optim.lr": "0.001"}, 3)
    assert other.mean == pytest.approx(0.52)
    assert other.spread == pytest.approx(0.02)  # sqrt((0.02**2 + 0.02**2 + 0) / 2)
    assert report_text(report).splitlines()[1:] == [
        "optim.lr  eval/loss  spread  n  jobs",
        "0.01      0.4                1  1 finished, 1 stopped",
        "0.001     0.52       0.02    3  3 finished",
        "5 jobs: 4 finished, 1 stopped",
    ]


def test_the_direction_turns_the_table_round(swept: Path) -> None:
    for path in swept.glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace("eval/loss", "eval/top1"))
    rows = make_report(*survey(swept, "eval/top1"), swept).rows
    assert [row.values["optim.lr"] for row in rows] == ["0.001", "0.01"]


@pytest.mark.parametrize(
    ("metric", "direction", "sentence"),
    [
        (None, "maximize", "--direction=maximize: lower values of eval/loss are better"),
        ("eval/top1", "minimize", "--direction=minimize: higher values of eval/top1 are better"),
        ("grad_norm", None, "grad_norm: which of its values are better is not known; set --direction=minimize"),
    ],
)
def test_a_direction_that_contradicts_the_metric_is_refused(
    swept: Path, metric: str | None, direction: str | None, sentence: str
) -> None:
    for path in swept.glob("*/metrics.jsonl"):
        path.write_text(path.read_text() + path.read_text().replace("eval/loss", "grad_norm"))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        survey(swept, metric, direction)


def test_the_metric_decides_over_the_direction_of_an_older_sweep(swept: Path) -> None:
    record = read_sweep(swept)
    assert record is not None
    write_sweep(swept, replace(record, direction="maximize"))
    assert survey(swept)[0].direction == "minimize"


def test_jobs_with_other_fixed_values_are_left_out_and_counted(swept: Path) -> None:
    job = make_job(["optim.steps=9", "optim.lr=0.001", "seed=0"], {"optim.steps"})
    write(swept / job.id, {8: 0.1})
    write_job(swept / job.id, new_record(job))
    report = make_report(*survey(swept), swept)
    assert [(row.mean, row.n) for row in report.rows] == [(0.4, 1), (pytest.approx(0.52), 3)]
    assert report_text(report).splitlines()[-1] == "1 more job directories have other fixed values"
    assert job.id not in write_csv(swept, report).read_text()
    sweep, jobs = survey(swept)
    sweep.family = "another"
    with pytest.raises(ConfigError, match="has no job yet"):
        make_report(sweep, jobs, swept)


def test_the_csv_has_a_row_for_each_job(swept: Path) -> None:
    path = write_csv(swept, make_report(*survey(swept), swept))
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 5
    found = {(float(row["optim.lr"]), int(row["seed"])): row["eval/loss"] for row in rows}
    assert {key: float(value) if value else None for key, value in found.items()} == VALUES


@pytest.mark.slow
def test_a_figure_for_each_swept_value_as_picture_and_vectors(swept: Path) -> None:
    paths = write_figures(swept, make_report(*survey(swept), swept))
    assert [path.name for path in paths] == ["eval_loss-optim.lr.png", "eval_loss-optim.lr.pdf"]
    with Image.open(paths[0]) as picture:
        assert picture.width > 500
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_rates_stand_on_a_logarithmic_axis_and_names_side_by_side() -> None:
    rates = sweep_chart([("1e-4", 1.0), ("1e-2", 2.0), ("1e-2", 3.0)], x_label="lr", y_label="loss").figure.axes[0]
    assert rates.get_xscale() == "log"
    assert list(rates.lines[1].get_ydata()) == [1.0, 2.5]
    close = sweep_chart([("0.1", 1.0), ("0.2", 2.0)], x_label="wd", y_label="loss").figure.axes[0]
    assert close.get_xscale() == "linear"
    names = sweep_chart([("post", 1.0), ("v1", 2.0)], x_label="variant", y_label="loss").figure.axes[0]
    assert [text.get_text() for text in names.get_xticklabels()] == ["post", "v1"]
    with pytest.raises(ValueError, match="at least one point"):
        sweep_chart([], x_label="", y_label="")


def test_a_job_whose_sweep_was_killed_is_not_running(swept: Path) -> None:
    (swept / LOCKS).mkdir()
    for record in survey(swept)[1]:
        (swept / LOCKS / record.id).mkdir()
    stopped = [job for job in survey(swept)[1] if job.status != "finished"]
    assert [(job.status, job.message) for job in stopped] == [("stopped", "its sweep was killed")]


def test_where_there_are_no_locks_a_job_is_believed_to_run(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swinv2_train.sweep.survey.is_held", lambda directory: None)
    running = [job for job in survey(swept)[1] if job.status != "finished"]
    assert [(job.status, job.message) for job in running] == [("running", "running, as far as can be told")]


def test_a_metric_that_no_job_has_is_named_with_those_that_are(swept: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval/los: the jobs have no such metric, only eval/loss"):
        make_report(*survey(swept, "eval/los"), swept)
