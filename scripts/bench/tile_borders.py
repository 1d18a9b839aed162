"""Borders of sliding windows in the result of a trained segmenter, compared with the prediction of whole images.

Per overlap of the windows: the pixels whose class differs from that of the whole image, and the difference of the
probabilities (half of the sum over the classes, 0 to 1), near the borders of windows and elsewhere. A seam is a step of
the probabilities from one pixel to the next: its mean across the border lines, over the mean across all other lines.
For the whole image, which has no windows, the same lines are compared. No border is visible if both agree.

    python scripts/bench/tile_borders.py runs/nuclei nuclei/heldout/images/nuclei.tif
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from report import write_report
from torch import Tensor

from swinv2_train.config.checks import resolution
from swinv2_train.data.augment import in_range, normalise
from swinv2_train.data.decode import DecodeOptions
from swinv2_train.data.image_regions import open_regions
from swinv2_train.interop.load import LoadedModel, load_model
from swinv2_train.tasks.segmentation.inference import Inference, TensorSource, score_strips
from swinv2_train.tasks.segmentation.transform import evaluation_crop

MARGIN = 4
"""Pixels on each side of a border that are near it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="a run or a file of weights of a segmenter")
    add("images", type=Path, nargs="+", help="image files")
    add("--overlaps", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    add("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    loaded = load_model(arguments.checkpoint)
    sums: dict[float, dict[str, float]] = {}
    with torch.inference_mode():
        for path in arguments.images:
            image = read(loaded, path)
            whole = probabilities(loaded, image, None, 0.0)
            for overlap in arguments.overlaps:
                found = compared(loaded, image, whole, overlap)
                known = sums.setdefault(overlap, dict.fromkeys(found, 0.0))
                sums[overlap] = {name: known[name] + value for name, value in found.items()}
    results = [{"overlap": overlap, **ratios(found)} for overlap, found in sums.items()]
    print(
        f"windows of {resolution(loaded.config)[0]} pixels; whole image against windows; borders within {MARGIN} pixels"
    )
    print("overlap  other class: borders  elsewhere  difference: borders  elsewhere  seam: windows  whole")
    for each in results:
        print(
            f"{each['overlap']:7.2f}  {each['class_borders']:20.2%}  {each['class_elsewhere']:9.2%}"
            f"  {each['difference_borders']:19.4f}  {each['difference_elsewhere']:9.4f}"
            f"  {each['seam_windows']:13.2f}  {each['seam_whole']:5.2f}"
        )
    write_report(arguments.out, ("torch",), margin=MARGIN, results=results)


def read(loaded: LoadedModel, path: Path) -> Tensor:
    """Return an image at its size in evaluation, (C, H, W), normalized."""
    config = loaded.config
    with open_regions(path, config.model.in_channels, DecodeOptions.of(config.data, loaded.mean)) as regions:
        crop = evaluation_crop(regions.size, resolution(config), config.task)
        decoded = regions.read(0, 0, *regions.size).image
    return normalise(in_range(crop.image(decoded, config.data.augment.interpolation)), loaded.mean, loaded.std)


def probabilities(loaded: LoadedModel, image: Tensor, window: tuple[int, int] | None, overlap: float) -> Tensor:
    """Return the probabilities of all pixels, (K, H, W)."""
    inference = Inference(loaded.config.model.patch_size, window, overlap)
    strips = score_strips(loaded.model, TensorSource(image), inference)
    return torch.cat([scores for _, scores in strips], dim=1).softmax(dim=0)


def compared(loaded: LoadedModel, image: Tensor, whole: Tensor, overlap: float) -> dict[str, float]:
    """Return sums over the pixels and the steps near borders and elsewhere, and their numbers."""
    window = resolution(loaded.config)
    inference = Inference(loaded.config.model.patch_size, window, overlap)
    found = probabilities(loaded, image, window, overlap)
    (view,) = inference.views((image.shape[-2], image.shape[-1]))
    lines = [borders(axis.starts, axis.window, inference.stride, axis.cells) for axis in (view.rows, view.columns)]
    near = torch.zeros(image.shape[-2:], dtype=torch.bool)
    for line in lines[0]:
        near[max(0, line - MARGIN) : line + MARGIN] = True
    for line in lines[1]:
        near[:, max(0, line - MARGIN) : line + MARGIN] = True
    wrong = found.argmax(dim=0) != whole.argmax(dim=0)
    difference = (found - whole).abs().sum(dim=0) / 2
    sums = {}
    for name, part in (("borders", near), ("elsewhere", ~near)):
        sums |= {f"pixels_{name}": int(part.sum()), f"class_{name}": int(wrong[part].sum())}
        sums[f"difference_{name}"] = float(difference[part].sum())
    for name, values in (("windows", found), ("whole", whole)):
        for dim, listed in enumerate(lines, 1):
            steps = values.diff(dim=dim).abs().sum(dim=0).mean(dim=2 - dim) / 2  # step i is between i and i + 1
            across = torch.zeros(len(steps), dtype=torch.bool)
            across[[line - 1 for line in listed if line <= len(steps)]] = True
            for kind, chosen in (("across", across), ("other", ~across)):
                for key, value in (("steps", float(steps[chosen].sum())), ("lines", int(chosen.sum()))):
                    label = f"{key}_{kind}_{name}"
                    sums[label] = sums.get(label, 0.0) + value
    return sums


def borders(starts: tuple[int, ...], window: int, stride: int, cells: int) -> list[int]:
    """Return the pixels at which windows begin or end within the image."""
    places = {*starts, *(start + window for start in starts)} - {0, cells}
    return sorted(place * stride for place in places)


def ratios(sums: dict[str, Any]) -> dict[str, float]:
    """Return fractions and means of the sums."""
    found = {}
    for part in ("borders", "elsewhere"):
        pixels = max(1, sums[f"pixels_{part}"])
        found |= {f"{name}_{part}": sums[f"{name}_{part}"] / pixels for name in ("class", "difference")}
    for name in ("windows", "whole"):
        across, other = (
            sums[f"steps_{kind}_{name}"] / max(1, sums[f"lines_{kind}_{name}"]) for kind in ("across", "other")
        )
        found[f"seam_{name}"] = across / other
    return found


if __name__ == "__main__":
    main()
