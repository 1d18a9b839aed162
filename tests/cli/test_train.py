"""The command line: quick help, a whole dry run, and usage errors in one sentence before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_train.cli import train
from swinv2_train.config.compose import experiments
from swinv2_train.exit_codes import FINISHED, STOPPED, WRONG_USE
from swinv2_train.launch.status import write_status
from tests.runs import environment, make_images, run_here, tiny_run

WITHOUT_TORCH = """
import sys
from swinv2_train.cli.train import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("imported:", *(name for name in {forbidden} if name in sys.modules), file=sys.stderr)
    sys.exit(end.code)
"""


def without(forbidden: tuple[str, ...], *arguments: str) -> tuple[int, str, list[str]]:
    """Run the command in a new process: (exit code, stdout, stderr lines), after a check of what it imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH.replace("{forbidden}", repr(forbidden)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    lines = done.stderr.splitlines()
    assert lines[-1] == "imported:", done.stderr
    return done.returncode, done.stdout, lines[:-1]


def test_help_lists_every_experiment_and_imports_nothing_slow() -> None:
    code, output, errors = without(("torch", "hydra", "deepspeed", "numpy", "omegaconf"), "--help")
    assert (code, errors) == (0, [])
    for name, line in experiments():
        assert name in output
        assert line in output
    assert "75" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["+experiment=simmim_tiny"], ["data.shards", "swinv2-data pack"]),
        (["+experiment=simmim_tiny", "data.shards=/no/such/train-*.tar"], ["/no/such"]),
        (["+experiment=simmim_tiny", "data.shard=x"], ["data.shard=x", "data.shards"]),
        (["+experiment=simmim_tiny", "model.window=0"], ["model.window=0"]),
        (["+experiment=simmim_tiny", "hydra.run.dir=there"], ["hydra.run.dir=there", "run.dir=DIR"]),
        (["+experiment=simmim_tyny"], ["simmim_tyny", "simmim_tiny"]),
        (["--config-dir", "/no/such/dir"], ["/no/such/dir"]),
    ],
)
def test_usage_errors_are_one_sentence_before_torch(arguments: list[str], parts: list[str]) -> None:
    code, output, errors = without(("torch", "deepspeed"), *arguments)
    assert code == WRONG_USE
    assert output == ""
    assert len(errors) == 1
    for part in parts:
        assert part in errors[0]


@pytest.mark.slow
def test_another_model_in_a_used_directory_is_refused_before_torch(finished_run: Path, shards: Path) -> None:
    code, _, errors = without(("torch",), *tiny_run(shards, finished_run, "model.embed_dim=32"))
    assert code == WRONG_USE
    assert len(errors) == 1
    assert "model.embed_dim=32: the run in" in errors[0]


def test_hydras_own_options_work_or_name_what_replaces_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - simmim_tiny\n  - _self_\nrun:\n  name: mine\n"
    )
    assert run_here(["--info", "--config-dir", str(tmp_path), "+experiment=mine", "model=swinv2_large"]) == FINISHED
    output = capsys.readouterr().out
    assert "versions       Python " in output
    assert f"  {tmp_path} (--config-dir)\n" in output
    files = [line.split()[0] for line in output.splitlines() if ".yaml -> " in line]
    assert files.index("config.yaml") < files.index("experiment/simmim_tiny.yaml") < files.index("experiment/mine.yaml")
    assert files[-1] == "model/swinv2_large.yaml"  # merged last, so that it wins over the experiment
    assert run_here(["--info", "+experiment=min"]) == WRONG_USE
    assert run_here(["-m", "--info", "+experiment=mine", "seed=0,1"]) == WRONG_USE
    assert "--info shows the origin of the config of one run: omit -m" in capsys.readouterr().err
    assert run_here(["--hydra-help"]) == FINISHED
    output = capsys.readouterr().out
    assert all(
        f"--{name} " in output for name in ("cfg", "info", "multirun,", "config-dir", "run", "experimental-rerun")
    )


def test_info_reads_paths_and_packs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configs, images = tmp_path / "cf (1)", tmp_path / "a=b"
    (configs / "experiment").mkdir(parents=True)
    (configs / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [simmim_demo]\n")
    make_images(images, 4, 0)
    run = [f"run.dir={tmp_path}/r1/c=d", f"images={images}", "resume.allow=[data]", "+experiment=mine"]
    assert run_here(["--info", "--config-dir", str(configs), *run]) == FINISHED
    assert "experiment/mine.yaml -> " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a=b", "cf (1)"]


def test_help_lists_the_experiments_of_the_user(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "tiles.yaml").write_text("# @package _global_\n# SimMIM on tiles.\n")
    with pytest.raises(SystemExit):
        train.main(["--config-dir", str(tmp_path), "--help"])
    output = capsys.readouterr().out
    assert "  tiles            SimMIM on tiles." in output
    assert "simmim_giant" in output


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--no-such-option"])
    assert caught.value.code == WRONG_USE


@pytest.mark.slow
def test_the_dry_run_of_the_giant_says_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = ["+experiment=simmim_giant", "launch.dry_run=true", "launch.nproc_per_node=8", f"run.dir={directory}"]
    assert run_here(arguments) == FINISHED
    output = capsys.readouterr().out
    for part in (
        "3.00 B parameters in the backbone (2997843680)", "192x192", "370.7 GMACs",
        "9216 = 72 samples x 16 accumulation x 8 ranks", "151909 steps = 20 epochs", "0.0014", "30000 warm-up steps",
        "cosine", "12x12", "6x6", "sequential", "sdpa", "every block", "ZeRO stage 1, bf16", "clip 100",
        "8 times, once per rank: DS_ACCELERATOR=", "-m swinv2_train.cli.train --resolved",
    ):  # fmt: skip
        assert part in output, part
    assert not directory.exists()


def test_a_dry_run_that_cannot_fit_ends_with_a_usage_error(
    capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path
) -> None:
    """After its description, and without a run directory; a run is rejected before ranks start."""
    arguments = [item for item in tiny_run(shards, tmp_path / "run") if not item.startswith("launch.device")]
    arguments.append("launch.gpu_memory_gib=0.001")
    assert run_here([*arguments, "launch.dry_run=true"]) == WRONG_USE
    output = capsys.readouterr()
    assert "per rank at the peak" in output.out
    assert "launch.gpu_memory_gib=0.001: a rank needs" in output.err
    assert run_here([*arguments, "launch.nproc_per_node=2"]) == WRONG_USE
    assert "launch.gpu_memory_gib=0.001: a rank needs" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_cfg_job_prints_the_config_and_the_plan(
    capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path
) -> None:
    assert run_here([*tiny_run(shards, tmp_path / "run"), "--cfg", "job"]) == FINISHED
    output = capsys.readouterr().out
    assert "embed_dim: 16" in output
    assert "31 samples (counted in data.shards)" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_under_a_launcher_does_not_train(
    capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, printed in (("0", True), ("3", False)):
        monkeypatch.setenv("RANK", rank)
        assert run_here(tiny_run(shards, tmp_path / "run", "launch.dry_run=true")) == FINISHED
        assert ("12 = 3 samples x 1 accumulation x 4 ranks" in capsys.readouterr().out) is printed
    assert not (tmp_path / "run").exists()


def test_a_run_dir_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_here(tiny_run(shards, tmp_path / "file")) == WRONG_USE
    assert "is a file; use another directory" in capsys.readouterr().err


def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is visible here")
    assert run_here(tiny_run(shards, tmp_path / "run", "launch.device=cuda")) == WRONG_USE
    assert "launch.device=cuda: no CUDA device is visible here" in capsys.readouterr().err


def test_fp16_on_the_cpu_is_refused(capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path) -> None:
    assert run_here(tiny_run(shards, tmp_path / "run", "engine.precision=fp16")) == WRONG_USE
    assert "engine.precision=fp16: needs a GPU" in capsys.readouterr().err


def test_a_stopped_run_that_torchrun_starts_again_stays_stopped(
    monkeypatch: pytest.MonkeyPatch, shards: Path, tmp_path: Path
) -> None:
    """torchrun takes the end of every rank with 75 for a failure, and starts them all again."""
    (tmp_path / "run").mkdir()
    write_status(tmp_path / "run", "stopped", 5)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run_here(tiny_run(shards, tmp_path / "run")) == STOPPED
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


@pytest.mark.slow
def test_the_command_of_several_ranks_on_cpu_never_imports_torch(shards: Path, tmp_path: Path) -> None:
    script = """
import sys
from swinv2_train.cli.train import main
from swinv2_train.launch import launcher
launcher.launch = lambda config, num_ranks, device, port: print(num_ranks, device, "torch" in sys.modules) or 0
main(sys.argv[1:])
"""
    overrides = tiny_run(shards, tmp_path / "run", "launch.nproc_per_node=2")
    done = subprocess.run([sys.executable, "-c", script, *overrides], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (0, "2 cpu False\n"), done.stderr
