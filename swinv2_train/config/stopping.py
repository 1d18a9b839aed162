"""Early stopping: the end of a run once a metric of its evaluations no longer improves."""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_train.config.section import Section


@dataclass
class EarlyStoppingConfig(Section):
    """End of a run once a metric of its evaluations no longer improves.

    The run is then finished: the rest of the last evaluation runs, the step is saved, and the log gives the reason. The
    learning rate still follows the full length of the run.
    """

    metric: str | None = None
    """Metric as named in metrics.jsonl, such as eval/loss or eval/probe/knn_top1; null: train to the last step."""
    patience: int = 5
    """Number of evaluations in a row without an improvement after which the run ends."""
    min_delta: float = 0.0
    """Smallest difference from the best value so far that counts as an improvement."""
