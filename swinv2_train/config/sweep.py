"""The sweep section of the config: several runs of one command, `swinv2-train -m`."""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.section import Section


@dataclass
class SweepConfig(Section):
    """Execution of the jobs of `swinv2-train -m`. No key here changes what a job computes."""

    name: str | None = None
    """Name of the sweep, and the W&B group; null: that of the sweep file, or else of the run."""
    dir: str | None = None
    """Directory of the jobs' run directories; null: outputs/sweeps/NAME."""
    experiment: str | None = None
    """Experiment of all jobs if the command names none; for sweep files."""
    metric: str = "eval/loss"
    """Metric that jobs are compared by, as named in metrics.jsonl; every job must record it."""
    direction: str | None = None
    """minimize or maximize: the better direction of the metric; null: the metric decides.

    A direction that contradicts the metric is rejected.
    """
    value: str = "last"
    """last or best: which of a job's values counts."""
    retries: int = 1
    """Number of times that a failed job is restarted within one call."""
    prune: str = "off"
    """median: stop a job that is worse than the median of the others at the same step. off: let every job end."""
    prune_after_steps: int = 0
    """No job is pruned before this step."""
    prune_min_jobs: int = 3
    """No job is pruned before N others have a value at that step."""
    job: str | None = None
    """The id of this run in its sweep; the sweep sets it."""
