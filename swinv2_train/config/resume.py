"""The resume section of the config: which checkpoint a start continues from, and what may differ from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from swinv2_train.config.errors import ConfigError
from swinv2_train.config.section import Section

DATA = "data"
"""Value of `resume.allow`: accept other training data."""
GLOBAL_BATCH = "optim.global_batch"
"""Value of `resume.allow`: accept another global batch."""
ALLOWED = (DATA, GLOBAL_BATCH)
_STEP = re.compile(r"step:(\d+)")


@dataclass
class ResumeConfig(Section):
    """Behavior in a used run directory. `resume=auto`, `resume=never`, and `resume=step:N` set the mode."""

    mode: str = "auto"
    """auto: continue from the newest valid checkpoint of the run directory; without one, start from the beginning.

    never: reject a used directory. step:N: continue from the checkpoint of step N, such as step:12000. In a directory
    with newer checkpoints, which would be lost, this is rejected: set `resume.source` and a new `run.dir`. The same
    command continues from the newest checkpoint when it is repeated.
    """
    source: str | None = None
    """Run whose checkpoint a new run directory continues from: the newest valid one, or that of `resume=step:N`.

    It has no effect once the new directory has checkpoints of its own. The source is not changed.
    """
    allow: list[str] = field(default_factory=list)
    """Differences from the checkpoint that are accepted and logged instead of rejected.

    data: training shards with other names, sizes, content, or class names. optim.global_batch: another global batch;
    the samples continue exactly where they were. A list: [data], [data,optim.global_batch].
    """

    @property
    def step(self) -> int | None:
        """Step of the checkpoint that `mode` selects; None if it selects none."""
        match = _STEP.fullmatch(self.mode)
        return int(match[1]) if match else None


def check_resume(resume: ResumeConfig) -> None:
    """Check the values of the section by themselves.

    Raises:
        ConfigError: for the first error.
    """
    if resume.mode not in ("auto", "never") and resume.step is None:
        hint = "must be auto, never, or step:N with the step of a checkpoint, such as step:12000"
        raise ConfigError("resume", resume.mode, hint)
    for value in resume.allow:
        if value not in ALLOWED:
            raise ConfigError("resume.allow", value, f"must be one of {', '.join(ALLOWED)}")
    if resume.source is not None and not resume.source:
        raise ConfigError("resume.source", "''", "set a run directory; null for none")
