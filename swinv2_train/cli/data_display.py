"""Output of `swinv2-data`: a progress bar on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swinv2_train.text import counted

if TYPE_CHECKING:
    from swinv2_train.data.inspect import Inspection
    from swinv2_train.data.object_cleaning import Cleaning
    from swinv2_train.data.speed import Speed

_LINES = 10
_SHOWN = 20
_FIRST = 3


class Progress:
    """Progress, reported with `show(name, done, total)`; drawn on stderr, so that stdout contains only the results."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, name: str, done: int, total: int) -> None:
        if self._bar is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=total)
            self._bar.update(self._tasks[name], completed=done)
        elif done * _LINES // total > self._shown.get(name, 0):
            self._shown[name] = done * _LINES // total
            print(f"{name}: {done:,} of {total:,}", file=sys.stderr, flush=True)


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print a name and a value per line, aligned; plain text, so that it can be piped."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print()


def rounded(value: float) -> str:
    """Return a measured number with the three digits that a repetition would confirm."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speed_lines(speed: Speed, frames: int = 0) -> list[str]:
    """Return a table of the stages of `swinv2-data bench`.

    Args:
        frames: of a clip; 0: images.
    """
    from swinv2_train.data.speed import STAGES

    count, noun = speed.num_samples, "clip" if frames else "image"
    size = f"{rounded(speed.bytes_read / count / 1000)} kB and {speed.pixels / count / 1e6:.2g} megapixels on average"
    rows = [f"{stage:<10}{rounded(speed.rate(stage)):>16}{speed.share(stage):>8.0%}" for stage in STAGES]
    return [
        f"{counted(count, noun, ',')}, {size}",
        f"{'stage':<10}{f'{noun}s/s, core':>16}{'time':>8}",
        *rows,
        f"{'all':<10}{rounded(speed.rate()):>16}",
    ]


def feeding_lines(rate: float, cores: int, side: int, frames: int = 0) -> list[str]:
    """Return a table of the GPUs that a host can feed, by model.

    Args:
        rate: images or clips per second and core.
        side: of the input, in pixels.
        frames: of a clip; 0: images.
    """
    from swinv2_train.planner.feeding import GPUS, MODELS, UTILIZATION, images_per_second

    def cell(model: str, gpu: str) -> str:
        wanted = images_per_second(model, side, gpu, frames)
        return f"{rounded(rate * cores / wanted)} ({rounded(wanted)})"

    unit = f"{'clips' if frames else 'images'}/s"
    return [
        f"{cores} {'core makes' if cores == 1 else 'cores make'} about {rounded(rate * cores)} {unit}, enough for "
        f"this many GPUs (in brackets: {unit} of one):",
        f"{'':<14}" + "".join(f"{gpu:>20}" for gpu in GPUS),
        *(f"{model:<14}" + "".join(f"{cell(model, gpu):>20}" for gpu in GPUS) for model in MODELS),
        f"The {unit} of a GPU are an estimate, not a measurement: SimMIM at {UTILIZATION:.0%} of its peak in bf16.",
        "The training processes need cores as well.",
    ]


def label_lines(problems: Sequence[tuple[str, str]]) -> list[str]:
    """Return the number of unusable labels, and the first of them."""
    if not problems:
        return []
    lines = [f"{len(problems):,} labels cannot be used"]
    lines += [f"label: {name}: {reason}" for name, reason in problems[:_SHOWN]]
    more = len(problems) - _SHOWN
    return lines + ([f"label: and {more:,} more"] if more > 0 else [])


def object_lines(cleaning: Cleaning) -> list[str]:
    """Return a line for each reason why objects were dropped or changed, with the first of them."""
    lines = []
    for row in cleaning.rows():
        count, first = row["objects"], ", ".join(row["first"][:_FIRST])
        kind = "dropped" if row["dropped"] else "changed"
        number = f"{count:,} {'object' if count == 1 else 'objects'}"
        lines.append(f"{kind}: {row['reason']}: {number}, {first}{', ...' if count > _FIRST else ''}")
    return lines


def broken_lines(broken: Sequence[tuple[str, str]]) -> list[str]:
    """Return the first images that were skipped, with the reasons."""
    lines = [f"skipped: {path}: {reason}" for path, reason in broken[:_SHOWN]]
    more = len(broken) - _SHOWN
    return lines + ([f"skipped: and {more:,} more"] if more > 0 else [])


def inspection_lines(found: Inspection) -> list[str]:
    """Return a line for everything in a set of shards that is not read, cannot be used, or looks wrong."""
    from swinv2_train.data.label_smoothing import smooth_warning

    lines = [f"cut off: {shard}: {why}" for shard, why in found.truncated]
    lines += [f"empty: {why}" for why in found.empty]
    lines += [f"several images: {line}" for line in found.choices]
    lines += [f"not read: {line}" for line in found.left_out.lines()]
    lines += [f"broken: {name}: {reason}" for name, reason in found.broken]
    lines += label_lines(found.label_problems)
    lines += [f"warning: {smooth_warning(found.smooth)}"] if found.smooth else []
    if found.unlabeled and found.labeled:
        lines.append(
            f"no label: {counted(found.unlabeled, 'sample', ',')}, while others have one (first: "
            f"{found.first_unlabeled})"
        )
    what = "image" if found.card.videos is None else "video"
    lines += [f"in both: {first} and {second} are the same {what}" for first, second in found.across[:_SHOWN]]
    if len(found.across) > _SHOWN:
        lines.append(f"in both: and {len(found.across) - _SHOWN:,} more")
    return lines
