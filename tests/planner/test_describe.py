"""The text of a dry run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swinv2_train.config.model import count_parameters
from swinv2_train.config.plan import make_plan
from swinv2_train.config.schema import Config
from swinv2_train.config.tasks import ClassificationConfig, VideoConfig
from swinv2_train.engine.selection import selection
from swinv2_train.planner.describe import describe
from swinv2_train.planner.fit import GIB, WORDS
from swinv2_train.planner.flops import forward_macs
from swinv2_train.planner.memory import evaluation_bytes, held, host_copy_bytes, peak
from tests.planner.configs import config


def test_what_trains_is_described() -> None:
    made = config(3)
    made.optim.freeze, made.optim.lr_scales = {"stages": 4}, {"backbone": 0.1}
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, 64
    lines = describe(made, make_plan(made, 1, 6400), "a test", *selection(made)).splitlines()
    first, second = (line.removeprefix("training       ") for line in lines if line.startswith("training "))
    total = made.task.describe(made).parameters
    trained = total - count_parameters(made.model, (192, 192)) + 2 * 768  # decoder and mask token, and the final norm
    assert first.startswith(f"{trained:,} of {total:,} parameters train; frozen: encoder.patch_embed, encoder.layers.0")
    assert second == "learning rates by module: encoder x 0.1"


def table(made: Config) -> tuple[str, list[str], str]:
    """Titles and this run's row of the table, and what stands below it."""
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, 64
    lines = describe(made, make_plan(made, 8, 6400), "a test").splitlines()
    titles = next(line for line in lines if line.startswith("  ranks"))
    row = next(line for line in lines if line.endswith("<- this run"))
    cells = [cell.strip() for cell in row.removesuffix("<- this run").split("  ") if cell.strip()]
    return titles, cells, "\n".join(lines[lines.index(titles) :])


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def test_the_table_says_what_every_rank_needs() -> None:
    made = config(ema=0.999, eval_shards="held-out")
    titles, cells, text = table(made)
    parameters = made.task.describe(made).parameters
    needed = peak(made, make_plan(made, 8, 6400))
    assert titles.split("  ")[-5:] == [
        "model states",
        "activations",
        "peak per rank",
        "states in evaluation",
        "host memory of saves",
    ]
    evaluation = held(made, parameters, 8).states + evaluation_bytes(made, parameters, 8)
    sizes = [needed.states, needed.total - needed.states, needed.total, evaluation]
    assert cells == ["8", "8 x 1", *map(gib, sizes), gib(host_copy_bytes(made, parameters, 8))]
    for line in ("set aside while the moving average", "on every rank", "=false"):
        assert line in text


def test_the_parts_of_the_peak_are_printed_and_add_up() -> None:
    made = config(ema=0.999)
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, 64
    lines = describe(made, make_plan(made, 8, 6400), "a test").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("memory "))
    needed = peak(made, make_plan(made, 8, 6400))
    assert lines[first] == f"memory         {gib(needed.total)} per rank at the peak, when {needed.moment}, on a GPU"
    parts = [line.removesuffix(" GiB").rsplit(None, 1) for line in lines[first + 1 : first + 1 + len(needed.parts())]]
    assert [name.strip() for name, _ in parts] == [WORDS[name] for name in needed.parts()]
    assert sum(float(size) for _, size in parts) == pytest.approx(needed.total / GIB, abs=0.04)
    assert "an estimate" in lines[first + 1 + len(parts)]
    made.launch.device = "cpu"
    on_cpu = "\n".join(describe(made, make_plan(made, 8, 6400), "a test").splitlines())
    assert "on a CPU" in on_cpu
    assert "an estimate" not in on_cpu


def test_an_upper_bound_is_named() -> None:
    made = config()
    made.engine.compile = True
    table(made)
    printed = describe(made, make_plan(made, 8, 6400), "a test")
    assert "  an upper bound: with engine.compile=true it may be less" in printed.splitlines()


def text(made: Config) -> dict[str, str]:
    """The lines that begin with a word, by that word or two."""
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, 64
    lines = describe(made, make_plan(made, 1, 6400), "a test").splitlines()
    return {line[:15].strip(): line[15:] for line in lines if not line.startswith(" ")}


def test_a_classifier_is_described_with_its_head() -> None:
    made = config()
    made.task = ClassificationConfig(num_classes=37, mixup=0.0)
    lines = text(made)
    backbone, total = (count_parameters(made.model, num_classes=classes) for classes in (0, 37))
    assert lines["model"] == (
        f"swinv2_tiny: {backbone / 1e6:.2f} M parameters in the backbone ({backbone}), "
        f"{total / 1e6:.2f} M with the head"
    )
    assert lines["task"] == (
        "classification: 37 classes, label smoothing 0.1, cutmix 1 on 100% of the images, "
        "rand-m9-mstd0.5-inc1, random erasing 0.25"
    )
    made.task = ClassificationConfig(
        multi_label=True, mix_prob=0.0, auto_augment=None, erase_prob=0.0, label_smoothing=0.0, repeats=3
    )
    assert text(made)["task"] == (
        "classification: number of classes from the data, several per image, color jitter 0.4, "
        "3 copies of every image in a batch"
    )


def test_differences_from_the_blocks_of_the_paper_are_printed() -> None:
    made = config()
    assert text(made)["blocks"] == "drop path 0.1"
    assert text(made)["task"] == ("simmim: mask 0.6 of 32-pixel patches, target normalized in 47-pixel windows")
    made.model = replace(
        made.model, extra_norm_period=6, norm_placement="pre", similarity="dot", position_bias="linear-cpb"
    )
    assert text(made)["blocks"] == (
        "drop path 0.1; extra norm every 6 blocks; norm placement pre; similarity dot; position bias linear-cpb"
    )


def test_clips_are_described_with_their_time() -> None:
    made = Config(task=VideoConfig(num_classes=10))
    made.model = replace(made.model, window=7, temporal_patch=2, temporal_window=[8, 8, 4, 1])
    made.data.resolution, made.data.frames = 224, 10
    made.optim.steps, made.optim.warmup_steps, made.optim.global_batch = 10, 1, 8
    lines = describe(made, make_plan(made, 1, 6400), "a test").splitlines()
    macs = forward_macs(made.model, (224, 224), 10)
    assert f"input          10 frames, 3 channels, 224x224 pixels, {macs / 1e9:.1f} GMACs forward per clip" in lines[2]
    assert "GFLOPs per clip, forward and backward" in lines[3]
    stages = [line for line in lines if line.split()[0] in "1234"][:4]
    assert [line.split()[4:7] for line in stages] == [
        ["5x56x56", "5x7x7", "0x3x3"],
        ["5x28x28", "5x7x7", "0x3x3"],
        ["5x14x14", "4x7x7", "2x3x3"],
        ["5x7x7", "1x7x7", "0x0x0"],
    ]
    assert [line.endswith("(padded to 8x14x14)") for line in stages] == [False, False, True, False]


def test_a_fraction_of_the_rate_is_printed() -> None:
    made = config()
    made.optim = replace(made.optim, lr=1e-3, lr_reference_batch=32)
    assert text(made)["schedule"].startswith("0.002 (0.001 per 32), 1 warm-up step")
    made.optim = replace(made.optim, lr_scale=0.25)
    assert text(made)["schedule"].startswith("0.0005 (0.001 per 32, times 0.25), 1 warm-up step")


def test_the_table_leaves_out_what_there_is_not() -> None:
    titles, cells, text = table(config(background=False))
    assert titles.endswith("peak per rank")
    assert len(cells) == 5
    assert "moving average" not in text
    assert "host" not in text
    assert "the copy on only the main rank" in table(config(0))[2]
