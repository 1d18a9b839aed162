"""Small real runs for tests: shards of made photographs, a tiny model, and ways to start it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_train.config.overrides import last_of_each

TINY_MODEL = [
    "model.embed_dim=16", "model.num_heads=[1,2,4,8]", "model.depths=[1,2,1,1]", "model.window=4", "data.resolution=64",
    "task.mask_patch_size=16",
]  # fmt: skip
"""A SwinV2 of 50 thousand parameters per block that a CPU steps in milliseconds."""


def make_images(directory: Path, count: int, seed: int) -> None:
    """JPEG files of smooth random scenes, 60 to 100 pixels a side."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = (int(side) for side in rng.integers(60, 100, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(directory / f"{index:04d}.jpg", quality=90)


def make_shard(path: Path, count: int, seed: int, broken: tuple[int, ...] = ()) -> None:
    """A plain WebDataset tar, without an index; the samples in `broken` hold half a JPEG."""
    import webdataset

    rng = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((80, 72), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
            writer.write({"__key__": f"{path.stem}-{index:04d}", "jpg": data[:200] if index in broken else data})


CLASSES = ("blue", "green", "red")
"""The classes of `make_labelled_shard`."""


def make_labelled_shard(path: Path, count: int, seed: int, labels: dict[int, bytes | None] | None = None) -> None:
    """A plain WebDataset tar of scenes whose tint is their class, in turn, with the class number in `cls`.

    Args:
        labels: other contents of `cls` by sample; None leaves it out.
    """
    import webdataset

    rng = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(count):
            label = index % len(CLASSES)
            coarse = rng.integers(0, 120, (4, 4, 3), dtype=np.uint8)
            coarse[..., 2 - label] += 100
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((80, 72), Image.Resampling.BICUBIC).save(buffer, "PNG")
            sample = {"__key__": f"{path.stem}-{index:04d}", "png": buffer.getvalue()}
            text = (labels or {}).get(index, str(label).encode())
            writer.write(sample if text is None else sample | {"cls": text})


def make_labelled_data(directory: Path) -> Path:
    """As `make_data`, with three classes."""
    directory.mkdir(parents=True, exist_ok=True)
    make_labelled_shard(directory / "train-0.tar", 20, 0)
    make_labelled_shard(directory / "train-1.tar", 11, 1)
    make_labelled_shard(directory / "eval-0.tar", 7, 2)
    return directory


def tiny_classification(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a supervised run of 8 steps over the shards of `make_labelled_data`; later overrides win."""
    return last_of_each([
        "task=classification", "task.num_classes=3", *TINY_MODEL[:-1], f"data.shards={shards}/train-*.tar",
        f"data.eval_shards={shards}/eval-*.tar", f"run.dir={run_dir}", "data.num_workers=0", "engine=zero1_fp32",
        "model.drop_path=0.2", "optim.global_batch=12", "optim.lr_reference_batch=12", "optim.steps=8",
        "optim.warmup_steps=2", "checkpoint.every_steps=4", "eval.every_steps=4", "eval.figure_every_steps=8",
        "eval.figure_samples=2", "tracking.log_every_steps=2", "tracking.tensorboard=false", "launch.device=cpu",
        *overrides,
    ])  # fmt: skip


def tiny_run(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a run of 8 steps over the shards that `make_data` makes; later overrides win."""
    return last_of_each([
        "+experiment=simmim_demo", *TINY_MODEL, f"data.shards={shards}/train-*.tar",
        f"data.eval_shards={shards}/eval-*.tar", f"run.dir={run_dir}", "data.num_workers=0",
        "model.drop_path=0.2", "optim.global_batch=12", "optim.lr_reference_batch=12", "optim.steps=8",
        "optim.warmup_steps=2", "checkpoint.every_steps=4", "eval.every_steps=4", "eval.figure_every_steps=8",
        "eval.figure_samples=2", "tracking.log_every_steps=2", "tracking.tensorboard=false", "launch.device=cpu",
        *overrides,
    ])  # fmt: skip


def make_data(directory: Path) -> Path:
    """Two training shards of unequal size and one held-out shard."""
    directory.mkdir(parents=True, exist_ok=True)
    make_shard(directory / "train-0.tar", 20, 0)
    make_shard(directory / "train-1.tar", 11, 1)
    make_shard(directory / "eval-0.tar", 7, 2)
    return directory


def exit_code(main: Callable[[list[str]], None], *arguments: object) -> int:
    """Run the main function of a command inside this process; returns the exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def refusal(main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that is used wrongly; returns the sentence that it ends with."""
    assert exit_code(main, *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    return message


def run_here(overrides: list[str]) -> int:
    """Run a training inside this process; returns the exit code."""
    from swinv2_train.cli.train import main

    return exit_code(main, *overrides)


def environment(**more: str) -> dict[str, str]:
    """The environment of a run in a process of its own: as if no launcher were around."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in launchers}
    return {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def make_hostile(directory: Path) -> Path:
    """A directory with files that are named like modules; whoever imports one of them ends with its name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in HOSTILE:
        (directory / f"{name}.py").write_text(f"import os\nos.write(2, b'{name}.py was run\\n')\nos._exit(99)\n")
    return directory


HOSTILE = (
    "random", "json", "torch", "numpy", "sitecustomize", "usercustomize", "selectors", "socket", "signal", "struct",
    "threading", "typing", "string", "types", "copy", "queue", "logging", "deepspeed", "yaml", "PIL", "hydra",
)  # fmt: skip
"""Modules that every command and every process of ours imports, and those that Python itself looks for."""


def start(command: list[str], cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
    """Start a command with the project's Python first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = environment(PATH=path, **more)
    return subprocess.Popen(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_command(command: list[str], cwd: Path | None = None, **more: str) -> tuple[int, str]:
    """Run a command to its end: (exit code, output)."""
    process = start(command, cwd, **more)
    output, _ = process.communicate(timeout=500)
    return process.returncode, output


def until(happens: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


CLOCKED = ("images_per_second", "mfu", "data_wait_share", "memory_gib", "seconds_left")
"""Fields that no two runs share."""


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the clock and the machine put in."""
    return [{key: value for key, value in record.items() if key not in CLOCKED} for record in metrics(run_dir)]


def cut_short(run: Path, copy: Path) -> Path:
    """Copy a run as if it had been killed after the checkpoint before its last one; returns the copy."""
    shutil.copytree(run, copy)
    shutil.rmtree(max((copy / "checkpoints").glob("step-*")))
    for name in ("status.json", "report.html"):
        (copy / name).unlink(missing_ok=True)
    return copy


def origins(run: Path) -> dict[str, str]:
    """Where the parameters of a run came from, by name: loaded, new, and so on."""
    table = (run / "init_from.txt").read_text().splitlines()
    return dict(line.split(maxsplit=2)[:2] for line in table if "  " in line)


def losses(run_dir: Path) -> list[float]:
    """The training losses, step by step, after a check that no step is missing or doubled."""
    rows = [record for record in metrics(run_dir) if "loss" in record]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
