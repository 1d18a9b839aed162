"""The command: one export end to end, and one sentence for every usage error."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_train.cli.export import FORMATS, main
from swinv2_train.config.tasks import SegmentationConfig
from swinv2_train.interop.target import EXPORTS
from tests.evaluated import save_weights
from tests.interop.made import make_picture, write_model
from tests.runs import exit_code


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("export") / "model.safetensors")


def test_the_command_knows_all_formats() -> None:
    assert FORMATS == EXPORTS


@pytest.mark.slow
def test_an_export_says_what_was_written_and_how_it_was_checked(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        make_picture(pictures / f"{seed}.png", seed=seed)
    out = tmp_path / "out"
    assert (
        exit_code(main, source, out, "--format", "timm", "model.window=8", "--images", pictures, "data.resolution=128")
        == 0
    )
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "on 7 images the logits " in shown  # these and 4 that are made
    assert "those of the original model (the largest is" in shown
    assert "input checked on 7 encoded images of 8 bits: timm's transform" in shown
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "| windows per stage | 8x8, 8x8, 8x8, 4x4 |" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{source}", "{out}", "--format", "keras"], "--format keras: must be one of swinv2-train, timm"),
        (["{source}", "{out}"], "--format"),
        (["{source}", "{tmp}", "--format", "timm"], "already exists"),
        (["{source}", "{out}", "--format", "timm", "model.windw=8"], "did you mean model.window"),
        (["{source}", "{out}", "--format", "timm", "window"], "write key=value"),
        (["{source}", "{out}", "--format", "timm", "data.crop_pct=0"], "data.crop_pct=0.0: is a share from 0.05 to 1"),
        (["{source}", "{out}", "--format", "timm", "data.num_workers=3"], "num_workers=3: applies only to training"),
        (["{source}", "{out}", "--format", "onnx", "--dtype", "fp16"], "written in fp32"),
        (["{tmp}/gone", "{out}", "--format", "timm"], "does not exist"),
        (["{source}", "{out}", "--format", "timm", "--ema"], "no moving average"),
        (["{source}", "{out}", "--format", "timm", "--images", "{tmp}/*.jpg"], "matches no image"),
    ],
)
def test_usage_errors_are_one_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    names = {"source": source, "out": tmp_path / "out", "tmp": tmp_path}
    assert exit_code(main, *(argument.format(**names) for argument in arguments)) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert message.count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["onnx", "timm"])
def test_an_inference_that_a_format_cannot_record_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    task = SegmentationConfig(num_classes=3, channels=8, decoder="linear", auxiliary_weight=0)
    save_weights(tmp_path / "segmenter.safetensors", task)
    given = [tmp_path / "segmenter.safetensors", tmp_path / "out", "--format", layout, "task.inference=slide"]
    assert exit_code(main, *given) == 2
    assert f"task.inference=slide: has no effect in the format {layout}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
