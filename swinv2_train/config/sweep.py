"""The sweep section of the config: several runs of one command, `swinv2-train -m`."""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.section import Section


@dataclass
class SweepConfig(Section):
    """What `swinv2-train -m` does around its jobs; none of it changes what a job computes."""

    name: str | None = None
    """Name of the sweep, and W&B's group; null: that of the sweep file, or of the run where there is none."""
    dir: str | None = None
    """Where the jobs' run directories are; null: outputs/sweeps/NAME."""
    experiment: str | None = None
    """The experiment of all jobs where the command names none; for sweep files."""
    metric: str = "eval/loss"
    """What a job is judged by, as metrics.jsonl names it; every job must record it."""
    direction: str | None = None
    """minimize or maximize: which end of the metric is the better one; null: the metric decides.

    A direction that contradicts the metric is refused.
    """
    value: str = "last"
    """last or best: which of a job's values counts."""
    retries: int = 1
    """How often a job that failed is started again in the same call."""
    prune: str = "off"
    """median: stop a job that is worse than the median of the others at the same step. off: let every job end."""
    prune_after_steps: int = 0
    """No job is pruned before this step."""
    prune_min_jobs: int = 3
    """No job is pruned before so many others have a value at that step."""
    job: str | None = None
    """The id of this run in its sweep; the sweep sets it."""
