"""Runs that do not fit into the memory of their GPUs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from swinv2_train.config.compose import compose, experiments
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.plan import Plan, make_plan
from swinv2_train.config.schema import Config
from swinv2_train.planner.fit import EXTRA_GIB, GIB, Gpu, check_fit
from swinv2_train.planner.memory import peak

A100 = Gpu("NVIDIA A100-SXM4-40GB", 42_405_855_232)
RANKS = {
    **dict.fromkeys(("simmim_giant", "supervised_giant", "in1k_giant_640"), 64),
    **dict.fromkeys(("simmim_base", "simmim_large", "simmim_huge", "simmim_finetune_base_224"), 16),
    **dict.fromkeys(("simmim_tiny", "simmim_demo", "classify_demo", "segment_tiles"), 1),
    "ade20k_giant": 32,
}
"""Least number of GPUs that the header of a recipe states; 8 for all others."""


def giant(*overrides: str, ranks: int = 64) -> tuple[Config, Plan]:
    made = compose(["+experiment=simmim_giant", *overrides])
    return made, make_plan(made, ranks, made.data.expected_samples)


def rejection(*overrides: str, ranks: int = 64) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fit(*giant(*overrides, ranks=ranks), None)
    return str(caught.value)


def test_nothing_is_checked_without_a_gpu_and_without_its_memory() -> None:
    assert check_fit(*giant("model.checkpointing=0"), None) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in experiments()])
def test_every_recipe_fits_the_gpus_of_its_header(name: str) -> None:
    made = compose([f"+experiment={name}"])
    plan = make_plan(made, RANKS.get(name, 8), made.data.expected_samples or 10_000)
    assert check_fit(made, plan, A100) == []


def test_a_run_that_cannot_fit_is_rejected_with_a_remedy() -> None:
    text = rejection("model.checkpointing=0", "launch.gpu_memory_gib=40")
    needed = peak(*giant("model.checkpointing=0")).total / GIB
    assert text.startswith(f"launch.gpu_memory_gib=40: a rank needs {needed:.2f} GiB of GPU memory when its backward")
    assert "GiB are activations saved for backward; use engine.micro_batch=24, which needs" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides", "remedy"),
    [
        (64, ["model.checkpointing=0", "launch.gpu_memory_gib=40"], "engine.micro_batch=24"),
        (64, ["model.checkpointing=0", "launch.gpu_memory_gib=24"], "model.checkpointing=1"),
        (8, ["model.checkpointing=0", "launch.gpu_memory_gib=24"], "engine.micro_batch=24 and model.checkpointing=1"),
        (64, ["launch.gpu_memory_gib=16"], "engine=zero2_bf16"),
        (1, ["launch.gpu_memory_gib=40"], "2 ranks"),
    ],
)
def test_the_remedy_fits_by_the_same_formula(ranks: int, overrides: list[str], remedy: str) -> None:
    text = rejection(*overrides, ranks=ranks)
    found = re.search(r"; use (.+), which needs ([\d.]+) GiB$", text)
    assert found is not None
    assert remedy in found[1]
    words = found[1].split(" and ")
    more = [int(word.removesuffix(" ranks")) for word in words if word.endswith(" ranks")]
    keys = [word for word in words if "=" in word]
    changed, plan = giant(*overrides, *keys, ranks=more[0] if more else ranks)
    assert peak(changed, plan).total / GIB == pytest.approx(float(found[2]), abs=0.01)
    assert float(found[2]) < changed.launch.gpu_memory_gib


def test_nothing_helps_a_card_that_is_too_small() -> None:
    assert rejection("launch.gpu_memory_gib=1").endswith("use a smaller model")


def test_a_present_gpu_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^a rank needs .*, more than the 39\.49 GiB of NVIDIA A100-SXM4-40GB; use "):
        check_fit(*giant("model.checkpointing=0"), A100)


def test_the_key_overrides_a_present_gpu() -> None:
    assert check_fit(*giant("model.checkpointing=0", "launch.gpu_memory_gib=80"), A100) == []


def test_a_run_within_the_estimated_rest_gets_a_warning() -> None:
    needed = peak(*giant()).total / GIB
    (line,) = check_fit(*giant(f"launch.gpu_memory_gib={needed + EXTRA_GIB[1] - 0.1}"), None)
    assert "with 0.5 to 1.5 GiB for context, NCCL, and allocator it may exceed launch.gpu_memory_gib" in line
    assert check_fit(*giant(f"launch.gpu_memory_gib={needed + EXTRA_GIB[1] + 0.1}"), None) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.compile=true", "engine.compile=true"),
        ("optim.freeze={stages: 3}", "optim.freeze"),
        ("+engine.deepspeed.zero_optimization.offload_optimizer.device=cpu", "zero_optimization.offload_optimizer"),
    ],
)
def test_an_upper_bound_gives_a_warning(override: str, words: str) -> None:
    (line,) = check_fit(*giant("model.checkpointing=0", "launch.gpu_memory_gib=40", override), None)
    assert words in line
    assert "may need less" in line


def test_a_bucket_leaves_the_formula_exact() -> None:
    rejection(
        "model.checkpointing=0",
        "launch.gpu_memory_gib=40",
        "+engine.deepspeed.zero_optimization.reduce_bucket_size=5e7",
    )


def test_a_frozen_config_can_be_compared() -> None:
    """Remedies are tried on copies: the config of a run that has started refuses assignments."""
    made, plan = giant("model.checkpointing=0", "launch.gpu_memory_gib=40")
    made.freeze()
    with pytest.raises(ConfigError, match=r"micro_batch=24"):
        check_fit(made, plan, None)
    assert replace(made.engine).micro_batch == 72
