"""`swinv2-features`: write the features of images or shards to an .npz or .parquet, on any number of ranks.

Exit status: 0 done; 1 failed, or some images could not be read (they are named); 2 usage error; 130 interrupted. After
1 and 130, the same command continues with what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser, shards, split_items, whole, wholes
from swinv2_train.cli.completion import offer, option_words
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.evaluate import (
    MACHINE_HELP,
    MACHINE_OPTIONS,
    MODEL_HELP,
    batches_shown,
    ranks_of,
    start_if_alone,
)
from swinv2_train.cli.manual import manual
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import NUM_STAGES
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.redact import redact

if TYPE_CHECKING:  # these import torch
    from swinv2_train.analysis.extract import Extracted, FeatureOptions

MODULE = "swinv2_train.cli.features"
_SHOWN_BROKEN = 10
_MACHINE_HELP = "\n".join(line for line in MACHINE_HELP.splitlines() if "out=DIR" not in line)
_HELP = f"""\
  CHECKPOINT               a run, a checkpoint, or a file of weights (this package's, official, timm, Hugging Face);
                           of a SimMIM model, the encoder is used, without a mask
  DATA                     image files, folders, and patterns; or shards: tars, folders of tars, patterns, URLs
  OUT                      a name that ends in .npz or .parquet (pip install "swinv2-train[parquet]")

the features:
  stages=1,2,3,4           also store the maps of these stages, (C, H, W) each; by default only the pooled features
  sheet=FILE.png           draw nearest neighbors, a row per query
  queries=8, neighbors=6   rows and columns of that picture

the model:
{MODEL_HELP}

the machine:
{_MACHINE_HELP}

The rows are in the order of the samples in their shards, or of the sorted file names. OUT has the columns index (number
of the sample), name, features, and stage1 to stage4 if requested; of shards also shard, and label (-1 without exactly
one class). Read an .npz with numpy.load(OUT)["features"]; its entry "about" describes the model. Until OUT is complete,
its parts are in OUT.parts, and the same command continues from them. An existing OUT is replaced at the end.

examples:
  swinv2-features outputs/in1k_tiny_256 my-images embeddings.npz sheet=neighbors.png
  swinv2-features outputs/simmim_base 'shards/val-*.tar' val.parquet which=best precision=bf16
  swinv2-features swinv2_tiny_patch4_window8_256.pth my-images maps.npz stages=3,4 data.resolution=384 model.window=12

exit status: 0 done; 1 some images could not be read, or it failed; 2 usage error; 130 interrupted"""


def _stages(text: str) -> list[int]:
    numbers = sorted(set(wholes(text)))
    if numbers[-1] > NUM_STAGES:
        raise ValueError(f"must be numbers from 1 to {NUM_STAGES}, separated by commas")
    return numbers


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "stages": _stages,
    "sheet": Path,
    "queries": whole(1),
    "neighbors": whole(1),
    **{key: convert for key, convert in MACHINE_OPTIONS.items() if key != "out"},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="swinv2-features",
        usage="swinv2-features CHECKPOINT DATA... OUT [KEY=VALUE ...]",
        description="Write the features of images for other programs, and draw nearest neighbors.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help="see below")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    offer(parser, option_words(_OPTIONS))
    arguments = parser.parse_args(given)
    interrupted = "interrupted; the same command continues"
    end(run_command("swinv2-features", lambda: _run(arguments.items, given), interrupted=interrupted))


def _run(items: Sequence[str], given: Sequence[str]) -> int:
    checkpoint, data, out, others = split_paths(items)
    options, overrides = split_items(others, _OPTIONS)
    sheet = _checked_sheet(options)
    source = data_options(data)
    from swinv2_train.analysis.feature_table import check_table

    check_table(out)
    if sheet is not None and not sheet.parent.is_dir():
        raise ConfigError("sheet", sheet, f"{sheet.parent} is not a directory")
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.extract import extract

    request = _request(checkpoint, source, options, overrides)
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        found = extract(request, out, ranks, progress)
        if ranks.is_main:
            _report(found, out)
            if sheet is not None:
                _draw(found, out, sheet, options)
    return FAILED if found.broken or found.lost else FINISHED


def split_paths(items: Sequence[str], usage: str = "CHECKPOINT DATA... OUT") -> tuple[str, list[str], Path, list[str]]:
    """Return the first path, those in the middle, the last one, and the `key=value` items.

    Args:
        usage: names of the three, for the message.

    Raises:
        ConfigError: if a path is missing.
    """
    paths, others = [], []
    for item in items:
        key, equals, _ = item.partition("=")
        (others if equals and "/" not in key and not Path(item).exists() else paths).append(item)
    if len(paths) < 3:
        raise ConfigError("", None, f"write {usage}; {len(paths)} of these three are given")
    return paths[0], paths[1:-1], Path(paths[-1]), others


def data_options(data: Sequence[str]) -> dict[str, Any]:
    """Return the field of `FeatureOptions` that the data is for: shards or images.

    Raises:
        ConfigError: if there are both.
    """
    tars = [item for item in data if _is_shards(item)]
    if not tars:
        return {"images": tuple(data)}
    if len(tars) < len(data):
        other = next(item for item in data if item not in tars)
        raise ConfigError("", other, f"{tars[0]} is shards and {other} is not; use one command for each")
    found = [shards(item) for item in tars]
    listed = [part for one in found for part in ([one] if isinstance(one, str) else one)]
    return {"shards": listed[0] if len(listed) == 1 else listed}


def _is_shards(item: str) -> bool:
    if item.startswith("[") or "://" in item or item.endswith((".tar", ".tar}")):
        return True
    path = Path(item).expanduser()
    return path.is_dir() and any(entry.suffix == ".tar" for entry in path.iterdir())


def _checked_sheet(options: Mapping[str, Any]) -> Path | None:
    sheet: Path | None = options.get("sheet")
    for key in ("queries", "neighbors"):
        if key in options and sheet is None:
            raise ConfigError(key, options[key], "applies to the picture of nearest neighbors: add sheet=FILE.png")
    if sheet is not None and sheet.suffix != ".png":
        raise ConfigError("sheet", sheet, "the name must end in .png")
    return sheet


def _request(
    checkpoint: str, source: Mapping[str, Any], options: Mapping[str, Any], overrides: Sequence[str]
) -> FeatureOptions:
    from swinv2_train.analysis.extract import FeatureOptions

    others = ("sheet", "queries", "neighbors", "ranks", "device")
    chosen = {key: value for key, value in options.items() if key not in others}
    return FeatureOptions(checkpoint, overrides=tuple(overrides), **source, **chosen)


def _report(found: Extracted, out: Path) -> None:
    def say(text: str) -> None:
        print(redact(f"swinv2-features: {text}"), file=sys.stderr)

    for note in found.notes:
        say(note)
    for name, reason in found.broken[:_SHOWN_BROKEN]:
        say(f"{name}: {reason}")
    if len(found.broken) > _SHOWN_BROKEN:
        say(f"and {len(found.broken) - _SHOWN_BROKEN:,} more; the entry about of {out} lists all")
    if found.broken:
        say(f"samples that could not be used, and have no row: {len(found.broken):,}")
    if found.continued:
        print(f"continued: {found.continued:,} samples were already computed")
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.shapes.items())
    print(f"{out}: {found.rows:,} rows of {redact(str(found.loaded.source.path))}: {shapes}", flush=True)


def _draw(found: Extracted, out: Path, sheet: Path, options: Mapping[str, Any]) -> None:
    import io

    from swinv2_train.analysis.feature_table import read_columns
    from swinv2_train.analysis.features import POOLED
    from swinv2_train.analysis.neighbors import neighbor_rows, neighbor_sheet
    from swinv2_train.writing import write_bytes

    columns = read_columns(out, ("index", "name", POOLED))
    if len(columns["name"]) < 2:
        raise ConfigError("sheet", sheet, f"{out} has one row, so there are no neighbors")
    rows = neighbor_rows(columns[POOLED], options.get("queries", 8), options.get("neighbors", 6))
    picture = neighbor_sheet(rows, columns["name"], columns["index"].tolist(), found.samples, found.loaded)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_bytes(sheet, stream.getvalue())
    print(f"{sheet}: {len(rows)} queries and their nearest neighbors")


if __name__ == "__main__":
    main()
