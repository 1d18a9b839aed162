"""The `task` section: one dataclass per task, and which one a run has is told by its `name`.

A section is the torch-free face of its task: all that the rest of the program needs to know before there is a model.
"""

from swinv2_train.config.tasks.base import LOSS, Description, Metric, TaskConfig
from swinv2_train.config.tasks.classification import ClassificationConfig
from swinv2_train.config.tasks.registry import TASK_SECTIONS, sections_of, task_section
from swinv2_train.config.tasks.simmim import SimMIMConfig

__all__ = [
    "LOSS",
    "TASK_SECTIONS",
    "ClassificationConfig",
    "Description",
    "Metric",
    "SimMIMConfig",
    "TaskConfig",
    "sections_of",
    "task_section",
]
