"""Picture of nearest neighbors: a row per query, which comes first, then the samples with the closest features.

Of a video, the frame in the middle is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from swinv2_train.analysis.features import nearest
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.file_set import FileSet
from swinv2_train.data.pixels import largest_value
from swinv2_train.data.sample import Sample
from swinv2_train.data.shards import ShardSet
from swinv2_train.interop.load import LoadedModel
from swinv2_train.lettering import fitted, font
from swinv2_train.redact import redact
from swinv2_train.tracking.figures import image_grid, to_pil

_SIDE = 160
_LINE = 18
_INK, _DIM, _FRAME = "#111827", "#6B7280", "#0072B2"


def neighbor_rows(features: np.ndarray, queries: int, neighbors: int) -> list[list[tuple[int, float]]]:
    """Return for each query its own row, and the rows of its nearest neighbors with their cosine similarity.

    Args:
        features: (N, D).
        queries: number of queries, which are spread evenly over the rows; at most N.
        neighbors: their number per query; at most N - 1.
    """
    vectors = torch.from_numpy(features.astype(np.float64))
    chosen = np.unique(np.linspace(0, len(features) - 1, min(queries, len(features))).round().astype(int)).tolist()
    found = []
    for rows, similarity, indices in nearest(vectors, vectors[chosen], neighbors + 1):
        for row, values, numbers in zip(rows.tolist(), similarity.tolist(), indices.tolist(), strict=True):
            query = chosen[row]
            others = [(number, value) for number, value in zip(numbers, values, strict=True) if number != query]
            found.append([(query, 1.0), *others[:neighbors]])
    return found


def neighbor_sheet(
    rows: Sequence[Sequence[tuple[int, float]]],
    names: Sequence[str],
    positions: Sequence[int],
    samples: ShardSet | FileSet,
    loaded: LoadedModel,
) -> Image.Image:
    """Draw the rows of `neighbor_rows`.

    Args:
        names: name of every row of the features.
        positions: its sample in `samples`.
    """
    decoding = DecodeOptions.of(loaded.config.data, loaded.mean)
    channels, frames = loaded.config.model.in_channels, loaded.config.data.frames

    def cell(row: int, similarity: float | None) -> Image.Image:
        try:
            sample = Sample(samples.read(positions[row]), channels, decoding)
            picture = _thumbnail(_middle(sample) if frames else sample.image)
        except BrokenSample:  # the file has changed in the meantime
            picture = Image.new("RGB", (_SIDE, _SIDE), "#EEF0F3")
        return _captioned(picture, names[row], similarity)

    cells = [
        [cell(row, None if column == 0 else similarity) for column, (row, similarity) in enumerate(listed)]
        for listed in rows
    ]
    most = max(len(listed) for listed in cells)
    return image_grid(cells, ["query", *(f"neighbor {number}" for number in range(1, most))], footer=_footer(loaded))


def _footer(loaded: LoadedModel) -> str:
    return redact(f"nearest by cosine similarity of the pooled features of {loaded.source.path}")


def _middle(sample: Sample) -> torch.Tensor:
    """Return the frame in the middle of a video, (3, H, W). Raises BrokenSample."""
    return sample.video.frames([sample.video.facts.frames // 2])[:, 0]


def _thumbnail(image: torch.Tensor) -> Image.Image:
    picture = to_pil(image.numpy() / largest_value(image), stretch=image.dtype == torch.uint16).convert("RGB")
    factor = min(_SIDE / picture.width, _SIDE / picture.height)
    sides = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(sides, Image.Resampling.LANCZOS)


def _captioned(picture: Image.Image, name: str, similarity: float | None) -> Image.Image:
    """Return a cell: the image in a square, with the similarity and the end of the name below; a query is framed."""
    cell = Image.new("RGB", (_SIDE, _SIDE + 2 * _LINE), "white")
    cell.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    if similarity is None:
        draw.rectangle((0, 0, _SIDE - 1, _SIDE - 1), outline=_FRAME, width=3)
    else:
        draw.text((0, _SIDE + 1), f"{similarity:.3f}", _INK, font(13))
    draw.text((0, _SIDE + _LINE), fitted(name, font(12), _SIDE, keep_end=True), _DIM, font(12))
    return cell
