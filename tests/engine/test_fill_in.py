"""Values from the data and the weights are filled in, and contradictions are rejected before anything slow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from swinv2_train.config.compose import compose
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.schema import Config, DataConfig
from swinv2_train.data.card import Card
from swinv2_train.data.channel_statistics import check_channels, check_channels_of_model, check_held_out_channels
from swinv2_train.engine.fill_in import complete, keep_windows
from tests.runs import TINY_MODEL, environment, tiny_run


def config(run_dir: Path, *more: str) -> Config:
    model = [item for item in TINY_MODEL if not item.startswith("task.")]
    return compose(["task=classification", *model, f"run.dir={run_dir}", *more])


@pytest.mark.slow
def test_the_card_tells_the_number_of_classes(tmp_path: Path) -> None:
    named = Card(class_names=["a", "b", "c"], class_counts=Counter({0: 4, 1: 4}))
    assert complete(config(tmp_path), named).task.num_classes == 3
    counted = Card(class_counts=Counter({0: 4, 6: 1}))
    assert complete(config(tmp_path), counted).task.num_classes == 7
    assert complete(config(tmp_path, "task.num_classes=9"), counted).task.num_classes == 9
    for card in (None, Card()):
        with pytest.raises(ConfigError, match=r"task.num_classes=0: .* lists no classes"):
            complete(config(tmp_path), card)


@pytest.mark.parametrize(
    ("channels", "have", "alpha", "fits"),
    [
        (3, {5: 4}, 0, False), (3, {5: 4, 3: 1}, 0, True), (3, {1: 2}, 0, True), (1, {3: 2}, 0, True),
        (4, {3: 2}, 0, False), (4, {3: 2}, 1, True), (3, {4: 2}, 0, False), (3, {4: 2}, 1, True), (2, {1: 3}, 1, True),
        (5, {5: 1}, 0, True), (3, {}, 0, True), (7, {3: 2}, 0, False), (3, {0: 2, 4: 1}, 0, True),
    ],
)  # fmt: skip
def test_images_that_the_model_cannot_read_are_refused(
    channels: int, have: dict[int, int], alpha: int, fits: bool
) -> None:
    card = Card(channels=Counter(have), alpha=alpha)
    if fits:
        check_channels(card, channels)
        return
    with pytest.raises(ConfigError, match=rf"model\.in_channels={channels}: the images .* set model\.in_channels="):
        check_channels(card, channels)
    with pytest.raises(ConfigError, match=rf"data=x: its images have .*, and the model reads {channels}: use shards"):
        check_channels_of_model(card, channels, "data", "x")
    made = Config(model=ModelConfig(in_channels=channels), data=DataConfig(eval_shards="x"))
    with pytest.raises(ConfigError, match=r"data\.eval_shards=x: its images"):
        check_held_out_channels(made, card)
    made.data.image = "left.png"
    check_held_out_channels(made, card)
    assert Card.from_json(card.to_json()).alpha_counted


def test_cards_that_did_not_count_alpha_refuse_neither_it_nor_color() -> None:
    earlier = Card.from_json({"channels": {"4": 2}})
    check_channels(earlier, 3)
    check_channels(Card.merged([Card(channels=Counter({4: 1})), earlier]), 3)
    check_channels(Card.from_json({"channels": {"3": 2}}), 4)
    with pytest.raises(ConfigError, match=r"model\.in_channels=3: the images of data\.shards have 6 channels: set"):
        check_channels(Card.from_json({"channels": {"6": 2}}), 3)


@pytest.mark.slow
def test_the_source_tells_the_windows_it_was_trained_with(finished_run: Path, tmp_path: Path) -> None:
    given = ["task.num_classes=2", f"init_from={finished_run}", "model.window=8", "data.resolution=128"]
    assert complete(config(tmp_path, *given), None).model.pretrained_window == [4, 4, 4, 2]
    mixed = complete(config(tmp_path, *given, "model.pretrained_window=[4,0,0,2]"), None)
    assert mixed.model.pretrained_window == [4, 4, 4, 2]
    untouched = complete(config(tmp_path, *given), None, weights=False)
    assert untouched.model.pretrained_window == 0


def test_a_task_on_images_of_all_sizes_records_its_own_windows(tmp_path: Path) -> None:
    made = ["task=segmentation", "task.num_classes=2", "model.window=8", "data.resolution=128", f"run.dir={tmp_path}"]
    assert complete(compose(made), None).model.pretrained_window == [8, 8, 8, 4]
    assert complete(compose(["task=classification", *made[1:]]), None).model.pretrained_window == 0
    assert complete(compose([*made, "model.pretrained_window=[4,0,0,2]"]), None).model.pretrained_window == [4, 8, 8, 2]


@pytest.mark.parametrize("windows", ["[6,6,6,3]", "4", "[4,0,0,4]"])
def test_windows_that_the_source_was_not_trained_with_are_refused(
    finished_run: Path, tmp_path: Path, windows: str
) -> None:
    given = ["task.num_classes=2", f"init_from={finished_run}", f"model.pretrained_window={windows}"]
    sentence = r"model.pretrained_window=\[.*\]: the weights in .* were trained with \[4,4,4,2\]; .*window=0 uses"
    with pytest.raises(ConfigError, match=sentence):
        complete(config(tmp_path, *given), None)


def without_resolution(path: Path, copy: Path) -> Path:
    """Write a copy of weights that does not record the size of their input."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    geometry = json.loads(metadata["geometry"])
    del geometry["data"]["resolution"]
    save_file(tensors, copy, metadata | {"geometry": json.dumps(geometry)})
    return copy


def test_weights_of_clips_tell_their_window_in_time(tmp_path: Path) -> None:
    from tests.interop.made import write_model

    clips = write_model(tmp_path / "clips.safetensors", frames=4, temporal_patch=2, temporal_window=[2, 3, 2, 2])
    images = write_model(tmp_path / "images.safetensors")
    given = [
        "task=video", "task.num_classes=6", "data.frames=16", "model.temporal_patch=2", "model.embed_dim=8",
        "model.depths=[1,2,2,1]", "model.num_heads=[1,2,4,8]", f"run.dir={tmp_path}/run",
    ]  # fmt: skip
    taken = complete(compose([*given, f"init_from={clips}"]), None).model
    assert (taken.temporal_window, taken.pretrained_temporal_window) == (8, [2, 3, 2, 2])
    assert taken.pretrained_window == [4, 4, 4, 2]
    inflated = complete(compose([*given, f"init_from={images}"]), None).model
    assert (inflated.pretrained_window, inflated.pretrained_temporal_window) == ([4, 4, 4, 2], 0)
    same = complete(compose([*given, f"init_from={clips}", "model.pretrained_temporal_window=[2,3,2,2]"]), None).model
    assert same.pretrained_temporal_window == [2, 3, 2, 2]
    for open_one, time in (("[0,0,0,0]", 0), ("[2,0,0,2]", 0), ("0", 2)):
        options = [f"model.pretrained_temporal_window={open_one}", f"model.temporal_window={time or 8}"]
        some = complete(compose([*given, f"init_from={clips}", *options]), None).model
        assert some.pretrained_temporal_window == [2, 3, 2, 2], open_one
    with pytest.raises(ConfigError, match=r"pretrained_temporal_window=4: the weights in .* trained with \[2,3,2,2\]"):
        complete(compose([*given, f"init_from={clips}", "model.pretrained_temporal_window=4"]), None)
    unsized = without_resolution(clips, tmp_path / "unsized.safetensors")
    for start, pretrained in ((clips, "0"), (unsized, "[4,4,4,2]")):
        told = complete(compose([*given, f"init_from={start}", f"model.pretrained_window={pretrained}"]), None).model
        assert (told.pretrained_window, told.pretrained_temporal_window) == ([4, 4, 4, 2], [2, 3, 2, 2])
    with pytest.raises(
        ConfigError, match=r"temporal_patch=4: the weights in .* \(8, 3, 2, 4, 4\), the model \(8, 3, 4"
    ):
        complete(compose([*given, f"init_from={clips}", "model.temporal_patch=4"]), None)


@pytest.mark.slow
def test_windows_are_told_where_the_source_does_not(tmp_path: Path) -> None:
    import torch

    from tests.interop.files import official_simmim_file

    torch.save(official_simmim_file(window=4), tmp_path / "weights.pth")
    given = ["task.num_classes=2", "model.embed_dim=8", "model.depths=[2,2,2,2]", f"init_from={tmp_path}/weights.pth"]
    with pytest.raises(ConfigError, match=r"no file records the window .* model.pretrained_window=\[12,12,12,6\]"):
        complete(config(tmp_path, *given), None)
    told = complete(config(tmp_path, *given, "model.pretrained_window=[3,3,3,2]"), None)
    assert told.model.pretrained_window == [3, 3, 3, 2]


def test_a_run_that_has_begun_is_completed_from_itself(finished_run: Path) -> None:
    own = compose(tiny_run(Path("/nowhere"), finished_run, "init_from=/no/longer/there", "model.window=4"))
    assert complete(own, None).model.pretrained_window == 0, "as in its checkpoints"


@pytest.mark.parametrize(
    ("key", "saved", "given", "expected"),
    [
        ("window", [4, 4, 4, 2], 0, [4, 4, 4, 2]),
        ("window", [4, 4, 4, 2], [4, 0, [0, 4], 0], [4, 4, 4, 2]),
        ("window", [4, 4, 4, 2], [4, 3, 0, 0], [4, 3, 0, 0]),  # another run: it is refused
        ("window", 4, [0, 0, 4, 4], 4),
        ("temporal_window", [2, 3, 2, 2], [0, 0, 0, 0], [2, 3, 2, 2]),
        ("temporal_window", [2, 3, 2, 2], [0, 3, 0, 0], [2, 3, 2, 2]),
        ("temporal_window", [2, 3, 2, 2], [0, 4, 0, 0], [0, 4, 0, 0]),
        ("temporal_window", None, 0, 0),
    ],
)
def test_a_resume_keeps_the_pretrained_windows_that_are_left_open(
    key: str, saved: Any, given: Any, expected: Any
) -> None:
    model = ModelConfig(temporal_patch=2, **{f"pretrained_{key}": given})
    keep_windows(model, {"model": {} if saved is None else {f"pretrained_{key}": saved}})
    assert getattr(model, f"pretrained_{key}") == expected


@pytest.mark.slow
def test_weights_of_another_size_are_refused_before_torch(finished_run: Path, shards: Path, tmp_path: Path) -> None:
    overrides = tiny_run(shards, tmp_path / "run", f"init_from={finished_run}", "model.depths=[1,1,1,1]")
    code = "import sys\nfrom swinv2_train.cli.train import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "2 blocks in layers.1.blocks, the model 1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "sentence"), [("0\n1\n", "has 2 lines"), ("0\n1\n2\n", "no classes whose rows")])
def test_a_label_map_that_cannot_be_used_is_refused(
    finished_run: Path, tmp_path: Path, lines: str, sentence: str
) -> None:
    import torch

    from tests.interop.files import official_file

    (tmp_path / "map.txt").write_text(lines)
    source = finished_run
    if "2 lines" in sentence:
        source = tmp_path / "window4_64.pth"
        torch.save(official_file(64, classes=5, window=4, embed_dim=8), source)
    given = ["task.num_classes=3", f"init_from={source}", f"init.label_map={tmp_path / 'map.txt'}"]
    shape = ["model.embed_dim=8", "model.depths=[2,2,2,2]"] if source != finished_run else []
    with pytest.raises(ConfigError, match=sentence):
        complete(config(tmp_path / "run", *given, *shape), None)


@pytest.mark.slow
@pytest.mark.parametrize(("recorded", "taken"), [({}, "drop"), ({"background": "black"}, "black"), (None, "white")])
def test_a_run_keeps_the_background_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, str] | None, taken: str
) -> None:
    """An earlier version recorded none, because it dropped the alpha channel; None: there is no checkpoint."""
    saved = None if recorded is None else {"data": recorded, "task": {"num_classes": 2}}
    monkeypatch.setattr("swinv2_train.engine.fill_in.saved_metadata", lambda *_: saved)
    assert complete(config(tmp_path), Card(class_counts=Counter({0: 4, 1: 4}))).data.background == taken
    given = complete(config(tmp_path, "task.num_classes=2", "data.background=mean"), None)
    assert given.data.background == "mean"  # and refused by the check of the run, if the run has another
