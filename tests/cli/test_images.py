"""`swinv2-train images=FOLDER`: packed once, again after a change, and never under a run that trains on the shards."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_train.cli.dry_run import show
from swinv2_train.cli.images import use_images
from swinv2_train.cli.samples import count_samples
from swinv2_train.cli.train import load, main, parse
from swinv2_train.config.compose import compose, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.data.errors import DataError
from swinv2_train.data.shards import ShardSet
from tests.runs import make_images, make_shard


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: 20 JPEGs, a PNG with alpha, a TIFF of 16 bits, a JPEG on its side, a broken one."""
    import tifffile

    folder = tmp_path_factory.mktemp("mixed") / "my {images}, 1"
    make_images(folder, 20, 0)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (70, 90, 4), dtype=np.uint8)).save(folder / "alpha.png")
    tifffile.imwrite(folder / "deep.tif", rng.integers(0, 65536, (70, 90, 3), dtype=np.uint16), photometric="rgb")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)).save(folder / "side.jpg", exif=exif)
    (folder / "half.jpg").write_bytes((folder / "0000.jpg").read_bytes()[:300])
    return folder


@pytest.fixture
def folder(mixed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; the times of its files are kept."""
    return Path(shutil.copytree(mixed, tmp_path / mixed.name))


def loaded(folder: Path, run: Path, *more: str) -> Config:
    return load(parse(["+experiment=own_simmim", f'images="{folder}"', f"run.dir={run}", *more]))


def states(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


@pytest.mark.slow
def test_an_unchanged_folder_is_packed_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = loaded(folder, tmp_path / "runs" / "mine")
    said = capsys.readouterr().err
    assert f"images: packing 24 images of {folder} into {tmp_path}/runs/shards/my__images___1-" in said
    assert "1 broken, skipped:" in said
    assert "half.jpg (jpeg: " in said
    assert config.images is None
    sets = [ShardSet.open(spec) for spec in (config.data.shards, config.data.eval_shards)]
    assert sum(each.num_samples for each in sets) == 23
    assert f"images: packed: {sets[0].num_samples} for training, {sets[1].num_samples} held out" in said

    place = Path(config.data.shards).parent
    before = states(place)
    again = loaded(folder, tmp_path / "runs" / "other", "optim.lr=2e-3", "checkpoint.keep_best=1")
    assert again.data == config.data
    assert f"is unchanged; using its shards in {place} ({sets[0].num_samples} for training" in capsys.readouterr().err
    assert states(place) == before

    (place / "train-000000.tar").unlink()
    assert loaded(folder, tmp_path / "runs" / "mine").data == config.data
    assert states(place)["train-000000.tar"][1] == before["train-000000.tar"][1]


@pytest.mark.slow
def test_a_changed_folder_leaves_the_shards_of_earlier_runs_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "mine"
    first = loaded(folder, run)
    run.mkdir()
    (run / "resolved.yaml").write_text(to_yaml(first))
    before = states(Path(first.data.shards).parent)
    assert loaded(folder, run).data == first.data

    Image.new("RGB", (64, 64), "red").save(folder / "new.png")
    with pytest.raises(
        ConfigError, match=r"images=.* trains on .*; to continue the run, set data\.shards='.*use another"
    ):
        loaded(folder, run)
    assert len(list((tmp_path / "runs" / "shards").iterdir())) == 1
    capsys.readouterr()
    for other in (loaded(folder, tmp_path / "runs" / "new"), loaded(folder, run, "resume.allow=[data]")):
        assert other.data.shards != first.data.shards
    said = capsys.readouterr().err
    assert f"images were others; {Path(first.data.shards).parent} stays for runs that use it" in said
    assert said.count("packing 25 images") == 1
    assert states(Path(first.data.shards).parent) == before


@pytest.mark.slow
def test_subfolders_are_classes_and_both_tasks_share_the_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, task = tmp_path / "mine", "experiment=own_classes"
    for seed, name in enumerate(("cats", "dogs")):
        make_images(folder / name, 6, seed)
    arguments = [f"images={folder}", f"run.dir={tmp_path}/run"]

    with pytest.raises(SystemExit) as end:
        main([f"+{task}", *arguments, "launch.dry_run=true"])
    shown = capsys.readouterr()
    assert end.value.code == 0
    assert "12 images of" in shown.err
    assert "would first be packed into" in shown.err
    assert "2 classes" in shown.out
    assert not (tmp_path / "shards").exists()

    classifier = load(parse([f"+{task}", *arguments]))
    assert ShardSet.open(classifier.data.shards).card.class_names == ["cats", "dogs"]
    said = capsys.readouterr().err
    assert "packing 12 images in 2 classes, the subfolders of" in said
    encoder = load(parse(["+experiment=own_simmim", *arguments]))
    assert encoder.data.shards == classifier.data.shards

    make_images(folder, 1, 5)
    with pytest.raises(ConfigError, match="needs a subfolder for each of at least two classes, and 1 of its images"):
        load(parse([f"+{task}", *arguments]))


@pytest.mark.slow
def test_a_few_images_are_trained_on_without_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "few", 1, 0)
    config = loaded(tmp_path / "few", tmp_path / "run")
    assert config.data.eval_shards == ""
    assert "too few to hold some out" in capsys.readouterr().err
    assert ShardSet.open(config.data.shards).num_samples == 1
    assert loaded(tmp_path / "few", tmp_path / "run").data == config.data


def test_a_dry_run_knows_that_images_will_be_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "mine", 6, 0)
    more = [
        "eval.early_stopping.metric=eval/loss", "eval.signal_every_steps=200", "checkpoint.keep_best=1",
        "checkpoint.every_steps=0", "eval.every_steps=5", "data.mean=dataset", "optim.epochs=20", "launch.device=cpu",
    ]  # fmt: skip
    given = ["+experiment=own_simmim", f"images={tmp_path}/mine", f"run.dir={tmp_path}/run", *more]
    config = load(parse([*given, "--cfg", "job"]))
    assert show(config, [], print_config=True) == 0
    shown = capsys.readouterr()
    assert "6 images of" in shown.err
    assert f"images: {tmp_path}/mine" in shown.out
    assert f"eval_shards: {tmp_path}/shards/mine-" in shown.out
    assert "which are not packed yet" in shown.out
    assert not (tmp_path / "shards").exists()


@pytest.fixture(scope="module")
def recipes() -> dict[str, Config]:
    found = {name: compose([f"+experiment={name}"]) for name in ("own_simmim", "own_classes")}
    return found | {"segments": compose(["task=segmentation"]), "objects": compose(["task=detection"])}


@pytest.mark.parametrize(
    ("images", "more", "says"),
    [
        ("nowhere", {}, "does not exist"),
        ("tars/../note.txt", {}, "is a file; set a folder of images, or a list of images"),
        ("", {}, "set a folder of images"),
        ("empty", {}, "holds no images"),
        ("tars", {}, "has shards and no images; set data.shards="),
        ("one", {"given": "data.shards=x.tar"}, "replace data.shards; set only one of the two"),
        ("one", {"dir": "one/run"}, "is inside of images="),
        ("one/shards", {"dir": "one/run"}, "one/shards, inside of images="),
        ("one", {"scale": "p1-p99", "only_show": True}, "a dry run packs nothing, so there is no dataset card"),
        ("one", {"recipe": "own_classes"}, "at least two classes, and all images are in cats"),
        ("one", {"resolution": -1}, "data.resolution=-1"),
        ("one", {"replay": "x"}, "omit images"),
        (
            "one",
            {"recipe": "segments"},
            "task=segmentation needs a label map of every image; pack them with swinv2-data",
        ),
        ("one", {"recipe": "objects"}, "task=detection needs the boxes of every image; pack them with swinv2-data"),
        ("one", {"frames": 8}, "data.frames=8 reads videos, and images are packed here; pack videos with swinv2-data"),
        ("clips", {}, "clips: has videos and no images; pack them with swinv2-data pack"),
    ],
)
def test_usage_errors_come_before_anything_is_packed(
    images: str, more: dict[str, Any], says: str, recipes: dict[str, Config], tmp_path: Path
) -> None:
    make_images(tmp_path / "one" / "cats", 1, 0)
    make_images(tmp_path / "one" / "shards", 1, 0) if images == "one/shards" else None
    for name in ("empty", "tars"):
        (tmp_path / name).mkdir()
    make_shard(tmp_path / "tars" / "a.tar", 1, 0)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"a video")
    (tmp_path / "note.txt").write_text("no images\n")
    config = deepcopy(recipes[more.get("recipe", "own_simmim")])
    config.images = images and str(tmp_path / images)
    config.run.dir = str(tmp_path / more.get("dir", "runs/x"))
    config.data.scale, config.data.frames = more.get("scale"), more.get("frames", 0)
    config.data.resolution, config.replay = more.get("resolution", 128), more.get("replay")
    with pytest.raises((ConfigError, DataError)) as error:
        use_images(config, [more.get("given", "seed=0")], only_show=more.get("only_show", False))
    assert says in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_ranks_sweeps_and_pipelines_do_not_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "one", 1, 0)
    config = compose(["+experiment=simmim_demo", f"images={tmp_path}/one"])
    with pytest.raises(ConfigError, match="applies to a single run of swinv2-train; pack it with swinv2-data pack"):
        count_samples(config, required=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a launcher has started this one; pack it with swinv2-data pack"):
        loaded(tmp_path / "one", tmp_path / "run")
