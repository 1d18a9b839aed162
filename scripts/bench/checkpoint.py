"""Time of saving, verifying, and loading a checkpoint, and the cost of a background save for training.

    python scripts/bench/checkpoint.py --out results.json                  # 30 million parameters, 0.36 GB
    python scripts/bench/checkpoint.py --parameters 1e6 --rounds 2         # a quick look

One rank with fp32 weights and Adam's two moments (and the moving average, with --ema). Every round measures everything
once, so that a drift of the machine's speed affects all alike; results are medians over rounds. Before verifying and
before loading, the files are dropped from the page cache, as after a restart, if the file system allows it. Loading
after verifying finds them there again, as a resume does. All writing ends with the data on disk (fsync).

The concurrent steps are forward and backward of a small convolutional network. A round takes the median time of a step
without a save, and then during a save; `step ratio` is the median over rounds of the second over the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import device_name, write_report
from torch import nn

from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import list_checkpoints
from swinv2_train.checkpoint.load import load_fragments
from swinv2_train.checkpoint.saver import Outcome, Saver
from swinv2_train.checkpoint.verify import verify
from swinv2_train.config.schema import CheckpointConfig

LARGEST = 1 << 22
"""Elements of the largest parameter."""
_DURING_SAVE = "step during a save"


class Alone:
    """The only rank."""

    rank, world_size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


def make_state(parameters: int, device: torch.device, *, ema: bool) -> list[Fragment]:
    """Return parameters with this total number of elements, with random values."""
    parts = ("weight", "exp_avg", "exp_avg_sq", "ema")[: 4 if ema else 3]
    sizes = [LARGEST] * (parameters // LARGEST) + [parameters % LARGEST] * (parameters % LARGEST > 0)
    return [
        Fragment(f"layer{index}", (size,), 0, **{part: torch.randn(size, device=device) for part in parts})
        for index, size in enumerate(sizes)
    ]


class Training:
    """Steps that keep the main thread and the device busy."""

    def __init__(self, device: torch.device, side: int) -> None:
        self._device = device
        self._model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 3, 1)
        ).to(device)
        self._images = torch.rand(4, 3, side, side, device=device)

    def step(self) -> float:
        """Return the seconds of one step."""
        start = time.perf_counter()
        self._model(self._images).square().mean().backward()
        self._model.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def drop_from_cache(path: Path) -> None:
    """Ask the system to drop the files below a path from its cache; they must be on disk."""
    for file in path.rglob("*.*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def begin(saver: Saver, step: int, fragments: list[Fragment]) -> None:
    saver.begin(step, fragments=fragments, state={"step": step}, metadata={}, metrics={})


def ended(outcomes: list[Outcome]) -> Outcome:
    """Return the only outcome, which must be a success."""
    (outcome,) = outcomes
    if outcome.failure is not None:
        raise SystemExit(f"saving failed: {outcome.failure}")
    return outcome


def beside(training: Training, saver: Saver, step: int, fragments: list[Fragment]) -> tuple[list[float], Outcome]:
    """Return the seconds of the steps that ended during a save (at least one), and the outcome of the save."""
    begin(saver, step, fragments)
    seconds = [training.step()]
    while not (outcomes := saver.poll()):
        seconds.append(training.step())
    return seconds[: max(1, len(seconds) - 1)], ended(outcomes)


def run_round(
    number: int, steps: int, training: Training, background: Saver, at_once: Saver, fragments: list[Fragment]
) -> dict[str, float]:
    """Return all measurements of one round, in seconds."""
    without = statistics.median(training.step() for _ in range(steps))
    with_save, in_background = beside(training, background, 3 * number + 1, fragments)
    begin(at_once, 3 * number + 2, fragments)
    path = ended(at_once.poll()).path
    drop_from_cache(path)
    cold = timed(lambda: load_fragments(path, fragments))
    drop_from_cache(path)
    verifying = timed(lambda: verify(path))
    warm = timed(lambda: load_fragments(path, fragments))
    begin(at_once, 3 * number + 3, fragments)
    return {
        "step": without,
        _DURING_SAVE: statistics.median(with_save),
        "pause of a background save": in_background.pause_seconds,
        "writing in the background": in_background.write_seconds,
        "save without a background": ended(at_once.poll()).pause_seconds,
        "loading alone": cold,
        "verification": verifying,
        "loading after verification": warm,
    }


def measure(options: argparse.Namespace, directory: Path, device: torch.device) -> dict[str, Any]:
    """Return the results of all rounds."""
    fragments = make_state(int(options.parameters), device, ema=options.ema)
    training = Training(device, options.side)
    savers = [
        Saver(directory, Alone(), CheckpointConfig(background=background, keep_last=1, retries=0))
        for background in (True, False)
    ]
    # The first save allocates the host memory, and the first steps choose their kernels.
    _, first = beside(training, savers[0], 0, fragments)
    rounds = [run_round(number, options.steps, training, *savers, fragments) for number in range(options.rounds)]
    seconds = {key: statistics.median(values[key] for values in rounds) for key in rounds[0]}
    size = sum(file.stat().st_size for file in list_checkpoints(directory)[0].rglob("*.safetensors"))
    return {
        "gigabytes": size / 1e9,
        "seconds": {**seconds, "pause of the first background save": first.pause_seconds},
        "step_ratio": statistics.median(values[_DURING_SAVE] / values["step"] for values in rounds),
        "verification_adds_to_loading": statistics.median(
            (values["verification"] + values["loading after verification"]) / values["loading alone"] - 1
            for values in rounds
        ),
    }


def print_table(results: dict[str, Any]) -> None:
    print(f"{results['gigabytes']:.3f} GB\n{'':36}{'seconds':>10}{'GB/s':>8}")
    for name, seconds in results["seconds"].items():
        speed = "" if name.startswith("step") else f"{results['gigabytes'] / seconds:8.2f}"
        print(f"{name:36}{seconds:10.4f}{speed}")
    print(f"{'step ratio, with over without a save':36}{results['step_ratio']:10.3f}")
    print(f"{'verification adds to loading':36}{results['verification_adds_to_loading']:10.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=30e6)
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps without a save in each round")
    parser.add_argument("--side", type=int, default=96, help="side of the images of a step")
    parser.add_argument("--directory", type=Path, help="where to write; default: the system's temporary directory")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        results = measure(options, Path(directory), device)
    print_table(results)
    write_report(options.out, ("torch",), device=device_name(), threads=torch.get_num_threads(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
