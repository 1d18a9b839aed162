"""An evaluation of finished weights is exact: every sample once, for any ranks, under any labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from swinv2_train.analysis.evaluate import EvalOptions, Evaluated, evaluate
from swinv2_train.analysis.window_sizes import resolution_for
from swinv2_train.analysis.window_transfer import window_curve
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.tasks import ClassificationConfig, DetectionConfig
from swinv2_train.data.augment import eval_crop, normalise
from swinv2_train.data.decode import decode
from swinv2_train.data.errors import DataError
from swinv2_train.data.pack import PackOptions, pack
from swinv2_train.errors import MainRankError, RunError
from swinv2_train.interop.load import load_model
from swinv2_train.launch.failures import together
from swinv2_train.tasks.class_report import worst_classes
from tests.data.annotated import coco, packed, write_coco, write_images
from tests.data.samples import jpeg, write_shards, write_tar
from tests.engine.threads import on_ranks
from tests.evaluated import SIZE, classifier, encoder, labelled_shards, save_weights, with_label
from tests.interop.files import official_simmim_file
from tests.models.detection.made import section

NAMES = ["cat", "dog", "elk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    labelled_shards(folder / "val", 23, 3, broken=(5,))
    classifier(folder / "model.safetensors", 3, NAMES)
    classifier(folder / "wide.safetensors", 7)
    encoder(folder / "encoder.safetensors")
    return folder


def options(folder: Path, model: str = "model", **changes: Any) -> EvalOptions:
    given = {"checkpoint": str(folder / f"{model}.safetensors"), "data": str(folder / "val"), "workers": 0, "batch": 4}
    return EvalOptions(**{**given, **changes})


def one(request: EvalOptions) -> Evaluated:
    return on_ranks(1, lambda ranks: evaluate(request, ranks))[0]


def logits_by_hand(folder: Path, model: str = "model") -> torch.Tensor:
    """Of the samples that are not broken, in order."""
    loaded = load_model(folder / f"{model}.safetensors")
    crops = [
        eval_crop(decode(jpeg(number), 3), (SIZE, SIZE), 0.875, "center", "bilinear")
        for number in range(23)
        if number != 5
    ]
    with torch.no_grad():
        return loaded.model(normalise(torch.stack(crops), loaded.mean, loaded.std))


LABELS = torch.tensor([number % 3 for number in range(23) if number != 5])


@pytest.mark.slow
def test_the_numbers_are_those_of_the_plain_definition(folder: Path) -> None:
    found, logits = one(options(folder)), logits_by_hand(folder)
    assert found.samples == 22
    assert [name for name, _ in found.broken] == ["val-000000.tar/img00005"]
    assert found.metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-5)
    assert found.metrics["top1"] == pytest.approx(float((logits.argmax(dim=1) == LABELS).double().mean()))
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (LABELS.numpy(), logits.argmax(dim=1).numpy()), 1)
    np.testing.assert_array_equal(found.sums["confusion"], confusion)
    assert found.class_names == NAMES
    assert found.images_per_second > 0


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_counts_every_sample_once(folder: Path, world_size: int) -> None:
    alone = one(options(folder))
    for found in on_ranks(world_size, lambda ranks: evaluate(options(folder, batch=3), ranks)):
        assert found.samples == 22
        assert found.broken == alone.broken
        for name in ("correct_1", "class_samples", "class_correct", "confusion"):
            np.testing.assert_array_equal(found.sums[name], alone.sums[name])
        assert found.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)
        assert found.metrics["ece"] == pytest.approx(alone.metrics["ece"], rel=1e-5)


def test_only_the_first_samples(folder: Path) -> None:
    assert one(options(folder, max_samples=4)).samples == 4


@pytest.mark.slow
def test_a_simmim_model_has_its_masked_loss(folder: Path) -> None:
    alone = one(options(folder, "encoder"))
    assert alone.samples == 22
    assert 0 < alone.metrics["loss"] < 10
    assert set(alone.metrics) == {"loss", "samples"}
    for found in on_ranks(2, lambda ranks: evaluate(options(folder, "encoder"), ranks)):
        assert found.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_label_map_restricts_the_head_to_its_classes(folder: Path) -> None:
    (folder / "map.txt").write_text("6\n0\n3\n")
    found = one(options(folder, "wide", label_map=str(folder / "map.txt")))
    logits = logits_by_hand(folder, "wide")[:, [6, 0, 3]]
    assert found.metrics["top1"] == pytest.approx(float((logits.argmax(dim=1) == LABELS).double().mean()))
    assert found.metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-5)
    assert np.asarray(found.sums["confusion"]).shape == (3, 3)


def real_labels(folder: Path, labels: list[list[int]]) -> Path:
    path = folder / "real.json"
    path.write_text(json.dumps({f"img{number:05d}": entry for number, entry in enumerate(labels)}))
    return path


@pytest.mark.slow
def test_real_labels_count_any_of_an_images_classes(folder: Path) -> None:
    predicted = logits_by_hand(folder).argmax(dim=1).tolist()
    predicted.insert(5, 0)  # the broken one
    labels = [[value, (value + 1) % 3] for value in predicted]
    for number in range(10, 16):  # wrong, whichever is taken
        labels[number] = [(predicted[number] + 1) % 3, (predicted[number] + 2) % 3]
    labels[20] = labels[21] = []  # nobody could tell
    found = one(options(folder, real_labels=real_labels(folder, labels)))
    assert found.samples == 20
    assert found.metrics["top1"] == pytest.approx(14 / 20)
    for other in on_ranks(2, lambda ranks: evaluate(options(folder, real_labels=folder / "real.json"), ranks)):
        np.testing.assert_array_equal(other.sums["confusion"], found.sums["confusion"])


def test_real_labels_need_no_others(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    predicted = logits_by_hand(folder).argmax(dim=1).tolist()[:3]
    labels = real_labels(folder, [[value] for value in predicted])
    assert one(options(folder, data=str(tmp_path), real_labels=labels)).metrics["top1"] == 1.0


def test_several_labels_per_image(tmp_path: Path) -> None:
    labels = [[0, 2], [], [1], [0, 1, 2]]
    members = []
    for number, entry in enumerate(labels):
        content = json.dumps({"labels": entry}).encode()
        members += [(f"img{number:05d}.jpg", jpeg(number)), (f"img{number:05d}.json", content)]
    write_tar(tmp_path / "val" / "val-0.tar", members)
    save_weights(tmp_path / "model.safetensors", ClassificationConfig(num_classes=3, multi_label=True), NAMES)
    found = one(options(tmp_path))
    assert found.samples == 4
    assert {"mAP", "f1", "loss"} < set(found.metrics)
    assert found.report is found.report  # a report may take long
    rows = [line.split(",") for line in found.report.files()["per_class.csv"].splitlines()]
    assert rows[0] == ["class", "name", "samples", "correct", "predicted", "average_precision"]
    assert [row[1:3] for row in rows[1:]] == [["cat", "2"], ["dog", "2"], ["elk", "2"]]
    (tmp_path / "real.json").write_text("[[0]]")
    with pytest.raises(ConfigError, match=r"real_labels=.* one class per image"):
        one(options(tmp_path, real_labels=tmp_path / "real.json"))


@pytest.mark.slow
def test_real_labels_that_do_not_fit_are_one_sentence(folder: Path) -> None:
    with pytest.raises(RunError, match=r"no entry for sample img00004"):
        one(options(folder, real_labels=real_labels(folder, [[0]] * 4)))
    with pytest.raises(RunError, match=r"real label 9 of sample img00000 is outside 0 to 2"):
        one(options(folder, real_labels=real_labels(folder, [[0, 9]] * 23)))
    with pytest.raises(ConfigError, match=r"real_labels=.* requires a classifier"):
        one(options(folder, "encoder", real_labels=real_labels(folder, [[0]] * 23)))
    with pytest.raises(ConfigError, match="label_map=names: requires a classifier"):
        one(options(folder, "encoder", label_map="names"))


@pytest.mark.slow
def test_labels_that_cannot_be_used_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "plain", [3])
    with pytest.raises(RunError, match=r"none of the 3 .* has no label"):
        one(options(folder, data=str(tmp_path / "plain")))
    labelled_shards(tmp_path / "more", 4, 4)
    found = one(options(folder, data=str(tmp_path / "more")))
    assert found.broken == [("val-000000.tar/img00003", "its label 3 is outside 0 to 2")]
    assert found.samples == 3


def packed_folders(tmp_path: Path, names: list[str], *, order: list[str] | None = None) -> Path:
    """An image in each folder, packed with its class: the n-th name has the n-th image.

    `order` numbers the classes: by text, as earlier versions did, if it is sorted.
    """
    class_names = tmp_path / "names.txt" if order else None
    if class_names:
        class_names.write_text("\n".join(order or ()))
    for number, name in enumerate(names):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "photo.jpg").write_bytes(jpeg(number))
    choices = {"classes": True, "class_names": class_names}
    pack(str(tmp_path / "images"), tmp_path / "packed", PackOptions(), split="val", **choices)
    return tmp_path / "packed"


@pytest.mark.slow
def test_folders_named_by_number_are_the_models_classes_by_name(tmp_path: Path) -> None:
    classifier(tmp_path / "model.safetensors", 12)
    numbers = [str(number) for number in range(12)]
    request = options(tmp_path, data=str(packed_folders(tmp_path, numbers, order=sorted(numbers))))
    with pytest.raises(DataError, match=r"class 2 of the shards is the folder '10', .* with label_map=names"):
        one(request)
    found = one(replace(request, label_map="names"))
    loaded = load_model(tmp_path / "model.safetensors")
    crops = [eval_crop(decode(jpeg(number), 3), (SIZE, SIZE), 0.875, "center", "bilinear") for number in range(12)]
    with torch.no_grad():
        predicted = loaded.model(normalise(torch.stack(crops), loaded.mean, loaded.std)).argmax(dim=1).tolist()
    assert found.class_names == sorted(numbers)
    named = {
        (found.class_names[row], found.class_names[column])
        for row, column in zip(*np.nonzero(np.asarray(found.sums["confusion"])), strict=True)
    }
    assert named == {(str(number), str(guess)) for number, guess in enumerate(predicted)}


@pytest.mark.slow
def test_shards_with_more_classes_than_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    data = str(packed_folders(tmp_path, ["ant", "bee", "cat", "dog"]))
    with pytest.raises(DataError, match="class 0 is 'ant' in the shards and 'cat' in the model"):
        one(options(folder, data=data))
    with pytest.raises(DataError, match="class 'ant' of the data is none of the model's names"):
        one(options(folder, data=data, label_map="names"))
    (tmp_path / "map.txt").write_text("0\n1\n2\n")
    with pytest.raises(DataError, match=r"labels up to 3, but the label map has 3 lines \(0 to 2\)"):
        one(options(folder, data=data, label_map=str(tmp_path / "map.txt")))
    classifier(tmp_path / "nameless.safetensors", 3)
    with pytest.raises(DataError, match=r"labels up to 3, but the model has 3 classes \(0 to 2\)"):
        one(options(tmp_path, "nameless", data=data))


def test_an_error_is_reported_once() -> None:
    def fail_on(rank: int) -> list[BaseException]:
        def work(ranks: Any) -> BaseException:
            def task() -> None:
                if ranks.rank == rank:
                    raise DataError("the shards are gone")

            with pytest.raises(Exception, match="the shards are gone") as caught:
                together(ranks, task)
            return caught.value

        return on_ranks(3, work)

    first = fail_on(0)
    assert [type(error) for error in first] == [DataError, MainRankError, MainRankError]
    second = fail_on(2)
    assert [type(error) for error in second] == [RunError, MainRankError, MainRankError]
    assert str(second[0]) == "rank 2: the shards are gone"


@pytest.mark.slow
def test_half_precision_on_a_cpu_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="precision=fp16: needs a GPU"):
        one(options(folder, precision="fp16"))
    exact, rounded = one(options(folder)), one(options(folder, precision="bf16"))
    assert rounded.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.1)
    assert rounded.metrics["loss"] != exact.metrics["loss"]


def test_the_worst_classes_come_first() -> None:
    sums = {"class_samples": np.array([4.0, 0.0, 9.0, 3.0]), "class_correct": np.array([2.0, 0.0, 0.0, 0.0])}
    assert worst_classes(sums, 2) == [2, 3]
    assert worst_classes(sums, 9) == [2, 3, 0]


def test_a_window_changes_the_resolution_in_proportion(folder: Path) -> None:
    config = load_model(folder / "model.safetensors").config
    assert [resolution_for(config, window) for window in (4, 6, 8)] == [(32, 32), (48, 48), (64, 64)]
    assert resolution_for(config, 5) == (40, 40)
    config.model.window = 7
    assert resolution_for(config, 5) == (32, 32)  # 22.86 pixels are not an integer: rounded to whole tokens
    config.model.window = [4, 4, 4, 2]  # the longest one decides
    assert resolution_for(config, 8) == (64, 64)


@pytest.mark.slow
def test_a_curve_holds_the_evaluations_that_it_is_made_of(folder: Path) -> None:
    (curve,) = on_ranks(1, lambda ranks: window_curve(options(folder), [4, 8], None, ranks))
    assert [(point.window, point.resolution) for point in curve.points] == [(4, (32, 32)), (8, (64, 64))]
    assert curve.points[0].metrics == one(options(folder)).metrics
    changed = one(options(folder, overrides=["model.window=8", "data.resolution=64"]))
    assert curve.points[1].metrics == changed.metrics
    assert one(options(folder, overrides=["test_window=8", "data.resolution=64"])).metrics == changed.metrics
    assert changed.metrics["loss"] != curve.points[0].metrics["loss"]
    assert curve.config.model.window == 4


@pytest.mark.slow
def test_a_curve_goes_by_the_windows_of_the_training_where_the_file_does_not_tell(tmp_path: Path, folder: Path) -> None:
    content = official_simmim_file(window=4)
    generator = torch.Generator().manual_seed(0)
    content["model"] = {  # fresh weights have the same bias at any offset
        key: 0.3 * torch.randn(value.shape, generator=generator) if "rpe_mlp" in key or "norm" in key else value
        for key, value in content["model"].items()
    }
    torch.save(content, tmp_path / "weights.pth")
    trained = ["model.window=4", "data.resolution=64", "model.pretrained_window=0"]
    request = options(folder, checkpoint=str(tmp_path / "weights.pth"), max_samples=4, overrides=trained)
    (curve,) = on_ranks(1, lambda ranks: window_curve(request, [4, 8], None, ranks))
    assert [point.resolution for point in curve.points] == [(64, 64), (128, 128)]

    def with_windows(before: str) -> dict[str, float]:
        given = ["model.window=8", "data.resolution=128", f"model.pretrained_window={before}"]
        return one(replace(request, overrides=given)).metrics

    assert curve.points[1].metrics == with_windows("[4,4,4,2]")
    assert curve.points[1].metrics != with_windows("0")


@pytest.mark.slow
def test_the_same_classes_under_other_words_go_by_their_numbers(folder: Path, tmp_path: Path) -> None:
    data = str(packed_folders(tmp_path, ["n1", "n2", "n3"]))
    with pytest.raises(DataError, match="class 0 is 'n1' in the shards and 'cat' in the model: use label_map=numbers"):
        one(options(folder, data=data))
    with pytest.raises(DataError, match="class 'n1' of the data is none of the model's names: label_map=numbers"):
        one(options(folder, data=data, label_map="names"))
    found = one(options(folder, data=data, label_map="numbers"))
    assert (found.samples, found.class_names) == (3, NAMES)
    nameless = one(options(folder, data=data, label_map=str(label_file(tmp_path, "0\n1\n2\n"))))
    np.testing.assert_array_equal(found.sums["confusion"], nameless.sums["confusion"])


@pytest.mark.slow
def test_numbered_folders_find_the_classes_of_a_model_with_names(tmp_path: Path) -> None:
    wnids = [f"n{number:08d}" for number in range(12)]
    classifier(tmp_path / "model.safetensors", 12, wnids)
    numbers = [str(number) for number in range(12)]
    request = options(tmp_path, data=str(packed_folders(tmp_path, numbers, order=sorted(numbers))))
    with pytest.raises(
        DataError, match="class 0 is '0' in the shards and 'n00000000' in the model: use label_map=names"
    ):
        one(request)
    with pytest.raises(DataError, match=r"class 2 of the shards is the folder '10', .* with label_map=names"):
        one(replace(request, label_map="numbers"))
    found = one(replace(request, label_map="names"))
    assert found.class_names == [wnids[int(name)] for name in sorted(map(str, range(12)))]
    assert np.asarray(found.sums["class_samples"]).tolist() == [1.0] * 12


def label_file(folder: Path, text: str) -> Path:
    (folder / "map.txt").write_text(text)
    return folder / "map.txt"


def test_the_label_of_the_training_is_that_of_the_evaluation(tmp_path: Path) -> None:
    with_label(classifier(tmp_path / "model.safetensors", 3, NAMES), "species")
    members = []
    for number, name in enumerate(["elk", "dog", "elk"]):  # no cat
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", json.dumps({"species": name}).encode())]
    write_tar(tmp_path / "val" / "0.tar", members)
    found = one(options(tmp_path))
    loaded = load_model(tmp_path / "model.safetensors")
    assert (found.samples, found.class_names, loaded.config.data.label) == (3, NAMES, "species")
    images = [eval_crop(decode(jpeg(number), 3), (SIZE, SIZE), 0.875, "center", "bilinear") for number in range(3)]
    logits = loaded.model(normalise(torch.stack(images), loaded.mean, loaded.std))
    assert found.metrics["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor([2, 1, 2])).item(), rel=1e-4)
    assert one(options(tmp_path, label_map="names")).metrics["loss"] != found.metrics["loss"]  # dog and elk alone
    with pytest.raises(ConfigError, match=r"data\.scale=p1-p99: percentiles are measured on training shards"):
        load_model(tmp_path / "model.safetensors", ["data.scale=p1-p99"])
    with_label(tmp_path / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"is damaged: its data\.label is 3"):
        load_model(tmp_path / "model.safetensors")


def test_categories_of_other_splits(tmp_path: Path) -> None:
    """A detector is only evaluated on its own categories; results have the ids of the evaluated shards."""
    task: DetectionConfig = section("mask_rcnn", num_classes=3, masks=False, max_detections=6)
    weights = {"depths": [1, 1, 1, 1], "window": [4, 4, 4, 2]}
    save_weights(tmp_path / "model.safetensors", task, ["dog", "cat", "kite"], **weights)
    images, content = write_images(tmp_path, 3), coco(3)
    numbers = {7: 30, 2: 10, 90: 50}
    for one_of in content["categories"]:
        one_of |= {"id": numbers[one_of["id"]], "name": one_of["name"].upper()}
    for one_of in content["annotations"]:
        one_of["category_id"] = numbers[one_of["category_id"]]
    packed(images, write_coco(tmp_path, content), tmp_path / "val")
    found = one(options(tmp_path, max_samples=2))
    results = json.loads(found.report.files()["detections.json"])
    assert results
    assert {each["category_id"] for each in results} <= {10, 30, 50}
    del content["categories"][2]
    content["annotations"] = content["annotations"][:1]
    packed(images, write_coco(tmp_path, content), tmp_path / "few")
    with pytest.raises(DataError, match=r"not those of the model \('kite' only in the model\): pack the shards again"):
        one(options(tmp_path, data=str(tmp_path / "few")))
