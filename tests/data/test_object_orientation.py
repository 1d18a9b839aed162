"""Boxes and masks follow the EXIF orientation of their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as judge

from swinv2_train.data.object_masks import bitmap
from swinv2_train.data.sample import Sample
from tests.data.annotated import CATEGORIES, HEIGHT, WIDTH, annotation, objects_of, packed, write_coco
from tests.data.packed import open_set
from tests.data.samples import encoded


def orient(picture: np.ndarray, orientation: int) -> bytes:
    """A JPEG whose EXIF orientation makes its upright pixels those of the picture."""
    undo = {1: (), 2: (0,), 3: (1,), 4: (6,), 5: (5,), 6: (2,), 7: (3,), 8: (4,)}
    stored = Image.fromarray(picture)
    names = [
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE,
        Image.Transpose.FLIP_TOP_BOTTOM,
    ]  # fmt: skip
    for number in undo[orientation]:
        stored = stored.transpose(names[number])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.asarray(stored), quality=95, exif=exif.tobytes())


@pytest.mark.parametrize("drawn", ["upright", "stored", "square"])
def test_annotations_follow_the_orientation_that_they_fit(tmp_path: Path, drawn: str) -> None:
    """A dark area is where its box and both forms of its mask are, each given alone, for all orientations.

    Annotations on stored pixels can be told by their size for the orientations that exchange the sides. Those of a
    square are upright.
    """
    orientations, side = range(5, 9) if drawn == "stored" else range(1, 9), HEIGHT if drawn == "square" else WIDTH
    folder = tmp_path / "images"
    folder.mkdir()
    listed, annotations = [], []
    picture = np.full((HEIGHT, side, 3), 240, np.uint8)
    picture[2:8, 13:22] = 0
    for number in orientations:
        (folder / f"{number}.jpg").write_bytes(orient(picture, number))
        stored = np.asarray(Image.open(folder / f"{number}.jpg").convert("L"))
        dark = (stored if drawn == "stored" else picture[..., 0]) < 120
        rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
        left, top, right, bottom = (float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        size = list(dark.shape)
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]})
        counts = judge.encode(np.asfortranarray(dark.astype(np.uint8)))["counts"].decode()
        forms = (
            {"bbox": [left, top, right - left, bottom - top], "segmentation": ...},
            {"bbox": ..., "segmentation": {"size": size, "counts": counts}},
            {"bbox": ..., "segmentation": [[left, top, right, top, right, bottom, left, bottom]]},
        )
        annotations += [annotation(10 * number + k, number, **form) for k, form in enumerate(forms)]
    place = write_coco(tmp_path, {"images": listed, "annotations": annotations, "categories": CATEGORIES})
    report = packed(folder, place, tmp_path / "out")
    assert (report.complete, report.broken) == (True, [])
    shards = open_set(tmp_path / "out")
    found = objects_of(shards)
    assert set(found) == {str(number) for number in orientations}
    for index in range(shards.num_samples):
        sample = Sample(shards.read(index))
        seen, one = (sample.image.float().mean(0) < 120).numpy(), found[sample.key]
        assert (seen == (picture[..., 0] < 120)).all(), sample.key
        assert one.size == seen.shape, sample.key
        assert one.boxes.tolist() == [[13, 2, 22, 8]] * 3, sample.key
        for mask in one.masks[1:]:
            assert mask is not None
            assert (bitmap(mask, one.size) == seen).all(), sample.key
