"""Cases of damaged files of runs, sweeps, and pipelines."""

from __future__ import annotations

import io
import random
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from tests.checkpoint.ranks import thread_ranks
from tests.faults.fuzz import Outcome, damage_bytes, damage_text_file, judged

RECORDS = (
    "metrics.jsonl", "status.json", "environment.json", "resolved.yaml", "wandb_id.txt", "job.json",
    "incidents/step-00000003-batch-00000002.json", "../pipeline.json", "../sweep.json", "log.txt", "init_from.txt",
)  # fmt: skip
"""Files that only describe a run, a sweep or a pipeline."""


def complete_run(run: Path) -> None:
    """Add to the directory of a finished run the files that only some runs have."""
    from dataclasses import asdict

    from swinv2_train.engine.incidents import Incident, write_incident
    from swinv2_train.engine.state import TrainState
    from swinv2_train.pipeline.state import Record, State, write_state
    from swinv2_train.sweep.job import JobRecord, SweepRecord, write_job, write_sweep

    state = asdict(TrainState(step=2, samples_seen=24))
    config = (run / "resolved.yaml").read_text()
    samples = [{"position": position, "sample": f"a/{position}"} for position in range(24, 36)]
    write_incident(run, Incident(3, "a test", "skip", 2, 1.0, None, 1, 12, [[1.0, None]], 0, samples, state, config))
    write_job(run, JobRecord(run.name, ["seed=1"], {"seed": "1"}, "f", status="finished", metric=0.5))
    write_sweep(run.parent, SweepRecord("s", "eval/loss", "minimize", "last", "f", []))
    write_state(run.parent, State("p", {run.name: Record("simmim", metric="eval/loss", begun=1.0)}))
    (run / "wandb_id.txt").write_text("abcd1234\n")
    (run / "init_from.txt").write_text("encoder.weight loaded\n")


def look_at_run(run: Path) -> dict[str, Any]:
    """Return what a resume reads before it trains, and what the commands show; keys of the state must not change."""
    from swinv2_train.checkpoint.load import load_fragments
    from swinv2_train.checkpoint.survey import read_state as read_checkpoint_state
    from swinv2_train.checkpoint.survey import survey
    from swinv2_train.checkpoint.verify import newest_valid
    from swinv2_train.config.schema import Config
    from swinv2_train.config.tasks import SimMIMConfig
    from swinv2_train.engine.identity import is_used
    from swinv2_train.engine.incidents import protector
    from swinv2_train.engine.start import changed_since, damaged_records, missed_evaluation
    from swinv2_train.engine.state import TrainState
    from swinv2_train.interop.model_card import run_directory
    from swinv2_train.launch.status import read_status
    from swinv2_train.pipeline.report import view
    from swinv2_train.pipeline.run import _state_before
    from swinv2_train.pipeline.state import Record
    from swinv2_train.sweep.job import read_jobs, read_sweep
    from swinv2_train.sweep.values import metric_names, metric_values
    from swinv2_train.tracking.environment import append_environment
    from swinv2_train.tracking.metrics_file import MetricsFile
    from swinv2_train.tracking.sinks import _stored_wandb_id

    said: list[str] = []
    config = Config(task=SimMIMConfig())
    read_status(run), is_used(run), run_directory(run)
    found = newest_valid(run / "checkpoints", thread_ranks(1)[0])
    said += found.passed_over
    state = None
    if found.path is not None:
        state = TrainState(**read_checkpoint_state(found.path)["train"]).to_dict()
        load_fragments(found.path, [])
    list(survey(run, hashes=True))
    said += changed_since(run / "resolved.yaml", config)[:1]
    said += damaged_records(run)
    missed_evaluation(run, config, 4, last=False)
    protector(run)()
    view(run.name, Record("simmim", metric="eval/loss"), run)
    metric_names(run), metric_values(run, "eval/loss")
    errors = io.StringIO()
    with redirect_stderr(errors):
        read_jobs(run.parent), read_sweep(run.parent)
    said += errors.getvalue().splitlines()
    _state_before(run.parent, said.append)
    _stored_wandb_id(run)
    append_environment(run, 4)
    said += [str(MetricsFile(run / "metrics.jsonl", 4).dropped_lines)]
    return {"checkpoint": found.path.name if found.path else None, "state": state, "said": said}


def run_case(seed: int, folder: Path, finished: Path) -> Outcome:
    """A damaged file of a finished run: a description of it, or part of its newest checkpoint."""
    rng = random.Random(f"run/{seed}")
    run = folder / "sweep" / "run"
    run.parent.mkdir(parents=True)
    shutil.copytree(finished, run, symlinks=True)
    complete_run(run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    parts = sorted(path for path in newest.rglob("*") if path.is_file())
    is_record = rng.random() < 0.7
    target = run / rng.choice(RECORDS) if is_record else rng.choice(parts)
    name = target.name if is_record else f"checkpoint {target.relative_to(newest).parts[0]}"
    if is_record and rng.random() < 0.1:
        target.unlink()
        target.mkdir()
        damage = "folder"
    elif target.suffix in (".json", ".jsonl"):
        damage = damage_text_file(target, rng, lines=target.suffix == ".jsonl")
    else:
        data = bytearray(target.read_bytes())
        damage = damage_bytes(data, rng)
        target.write_bytes(data)

    def look(said: list[str]) -> tuple[bool, str]:
        before = target.read_bytes() if target.is_file() else b""
        seen = look_at_run(run)
        if is_record:
            return seen["checkpoint"] == newest.name and seen["state"]["step"] == 8, "another checkpoint"
        passed = [line for line in seen["said"] if line.startswith(newest.name)]
        if passed:
            said += passed
        kept = seen["checkpoint"] == newest.name and before == (finished / target.relative_to(run)).read_bytes()
        return kept, f"took {seen['checkpoint']}"

    return judged(f"{name}: {damage}", look)
