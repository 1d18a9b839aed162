"""`swinv2-features`: write the features of images, videos, or shards to an .npz or .parquet, on any number of ranks.

Exit status: 0 done; 1 failed, or some images could not be read (they are named, and OUT has the others); 2 usage error;
130 interrupted. After a failure or an interruption, the same command continues with what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.cli.arguments import Parser, shards
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.evaluate import batches_shown, joined, ranks_of, start_if_alone
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.values import file_path, listed, whole, wholes
from swinv2_train.cli.weight_arguments import (
    add_checkpoint,
    add_choice,
    add_ranks,
    check_precision,
    check_shards,
    check_weights,
    given_options,
)
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.model import NUM_STAGES
from swinv2_train.config.paths import user_path
from swinv2_train.exit_codes import FAILED, FINISHED
from swinv2_train.redact import redact
from swinv2_train.text import counted

if TYPE_CHECKING:  # these import torch
    from swinv2_train.analysis.extract import Extracted, FeatureOptions

MODULE = "swinv2_train.cli.features"
_SHOWN_BROKEN = 10
_MEMORY = "lower --batch, --workers, or data.resolution"
"""Remedies for a lack of memory."""
_HELP = """\
The rows are in the order of the samples in their shards, or of the sorted file names. OUT has the columns index (number
of the sample), name, features, and stage1 to stage4 if requested; of shards also shard, and label (-1 without exactly
one class). Read an .npz with numpy.load(OUT)["features"]; its entry "about" describes the model. Until OUT is complete,
its parts are in OUT.parts, and the same command continues from them. An existing table is replaced at the end, and no
other file. Of a SimMIM model, the encoder is used, without a mask. With a model of clips, DATA are videos, each
represented by the clip in its middle; the maps of stages are then (C, T, H, W).

examples:
  swinv2-features outputs/in1k_tiny_256 my-images embeddings.npz --sheet neighbors.png
  swinv2-features outputs/simmim_base 'shards/val-*.tar' val.parquet --which best --precision bf16
  swinv2-features checkpoint=swinv2_tiny_window8.pth data=my-images out=maps.npz stages=3,4 data.resolution=384

exit status: 0 done; 1 some images could not be read, or it failed; 2 usage error; 130 interrupted"""


def _stages(text: str) -> list[int]:
    numbers = sorted(set(wholes(text)))
    if numbers[-1] > NUM_STAGES:
        raise ValueError(f"must be numbers from 1 to {NUM_STAGES}, separated by commas")
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(given)
    interrupted = "interrupted; the same command continues"
    end(
        run_command("swinv2-features", lambda: _run(arguments, given), interrupted=interrupted, memory=_MEMORY),
        whole_process=argv is None,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-features",
        usage="swinv2-features CHECKPOINT DATA... OUT [options] [KEY=VALUE ...]",
        description="Write the features of images or videos for other programs, and draw nearest neighbors.",
        epilog=f"{_HELP}\n\n{manual('analysis')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        nargs="+",
        help="image or video files, folders, and patterns; or shards: tars, folders of tars, patterns, URLs",
    )
    add("out", metavar="OUT", type=file_path, help='a name in .npz or .parquet (pip install "swinv2-train[parquet]")')
    add_choice(parser)
    add_ranks(parser)
    add(
        "--stages",
        type=_stages,
        metavar="N,N,...",
        help="also store the maps of these stages, (C, H, W) each; by default only the pooled features",
    )
    add("--sheet", type=file_path, metavar="FILE.png", help="draw nearest neighbors, a row per query")
    add("--queries", type=whole(1), metavar="N", help="rows of that picture (default: 8)")
    add("--neighbors", type=whole(1), metavar="N", help="columns of that picture (default: 6)")
    add_imports(parser)
    return parser


def _run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    use_imports(arguments)
    options = given_options(arguments)
    sheet, out = _checked_sheet(options), arguments.out
    source = data_options(arguments.data, out, sheet)
    if not joined():
        _check(arguments, source)
    started = start_if_alone(MODULE, given, options)
    if started is not None:
        return started

    from swinv2_train.analysis.extract import extract

    request = _request(source, options)
    with ranks_of(options) as ranks, batches_shown(ranks) as progress:
        found = extract(request, out, ranks, progress)
        if ranks.is_main:
            _report(found, out)
            if sheet is not None:
                _draw(found, out, sheet, options)
    return FAILED if found.broken or found.lost else FINISHED


def _check(arguments: argparse.Namespace, source: Mapping[str, Any]) -> None:
    """Check what is known before torch is imported.

    Raises:
        ConfigError, DataError, CheckpointError: naming the argument.
    """
    from swinv2_train.analysis.feature_outputs import check_outputs, find_inputs
    from swinv2_train.data.samples import IMAGE, VIDEO
    from swinv2_train.launch.local_ranks import choose_ranks

    check_outputs(arguments.out, arguments.sheet)
    check_precision(arguments, choose_ranks(arguments.device, arguments.ranks)[0])
    config, weights = check_weights(arguments)
    if "shards" in source:
        check_shards(source["shards"])
    else:
        find_inputs(source["images"], arguments.out, arguments.sheet, VIDEO if config.data.frames else IMAGE)
    loading("swinv2-features", f"{weights.path} and {arguments.data[0]}")


def data_options(data: Sequence[str], out: Path, sheet: Path | None = None) -> dict[str, Any]:
    """Return the field of `FeatureOptions` that the data is for: shards or images.

    Args:
        out, sheet: outputs, which may be among the shards.

    Raises:
        ConfigError: if there are both.
    """
    from swinv2_train.analysis.feature_outputs import own_outputs

    items = [part for item in data for part in listed(item)]
    own = own_outputs(out, sheet)
    tars = [item for item in items if _is_shards(item, own)]
    if not tars:
        return {"images": tuple(items)}
    if len(tars) < len(items):
        other = next(item for item in items if item not in tars)
        raise ConfigError("", other, f"{tars[0]} is shards and {other} is not; use one command for each")
    return {"shards": shards(tars)}


def _is_shards(item: str, own: Sequence[Path]) -> bool:
    """Return whether an item is shards; a folder with images or videos too is refused, because it may be meant as
    either."""
    from swinv2_train.data.image_files import extension, is_array, scan_folder
    from swinv2_train.data.video_files import scan_videos

    if "://" in item or item.endswith((".tar", ".tar}")):
        return True
    path = user_path(item)
    if not path.is_dir() or not any(entry.suffix == ".tar" for entry in path.iterdir()):
        return False
    for kind, scan in (("images", scan_folder), ("videos", scan_videos)):
        found = [name for name in scan(path, own).images if extension(name) and not is_array(extension(name))]
        if found:
            pattern = f"'{path}/*.{extension(found[0])}'"
            forms = f"name the shards by '{path}/*.tar', or the {kind} by a pattern such as {pattern}"
            raise ConfigError("", item, f"{item} holds tars and {kind}, such as {found[0]}; {forms}")
    return True


def _checked_sheet(options: Mapping[str, Any]) -> Path | None:
    sheet: Path | None = options.get("sheet")
    for key in ("queries", "neighbors"):
        if key in options and sheet is None:
            raise ConfigError(key, options[key], "applies to the picture of nearest neighbors: add sheet=FILE.png")
    if sheet is not None and sheet.suffix != ".png":
        raise ConfigError("sheet", sheet, "the name must end in .png")
    return sheet


def _request(source: Mapping[str, Any], options: Mapping[str, Any]) -> FeatureOptions:
    from swinv2_train.analysis.extract import FeatureOptions

    names = ("which", "ema", "batch", "precision", "max_samples", "workers", "cache_dir", "cache_gib", "stages")
    chosen = {name: options[name] for name in (*names, "sheet") if name in options}
    return FeatureOptions(options["checkpoint"], overrides=tuple(options["changes"]), **source, **chosen)


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
        print(f"continued: {counted(found.continued, 'sample', ',')} were already computed")
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.shapes.items())
    print(
        f"{out}: {counted(found.rows, 'row', ',')} of {redact(str(found.loaded.source.path))}: {shapes}",
        flush=True,
    )


def _draw(found: Extracted, out: Path, sheet: Path, options: Mapping[str, Any]) -> None:
    import io

    from PIL.PngImagePlugin import PngInfo

    from swinv2_train.analysis.feature_outputs import SHEET_MARK
    from swinv2_train.analysis.feature_table import read_columns
    from swinv2_train.analysis.features import POOLED
    from swinv2_train.analysis.neighbors import neighbor_rows, neighbor_sheet
    from swinv2_train.writing import write_bytes

    columns = read_columns(out, ("index", "name", POOLED))
    if len(columns["name"]) < 2:
        raise ConfigError("sheet", sheet, f"{out} has one row, so there are no neighbors")
    rows = neighbor_rows(columns[POOLED], options.get("queries", 8), options.get("neighbors", 6))
    picture = neighbor_sheet(rows, columns["name"], columns["index"].tolist(), found.samples, found.loaded)
    stream, mark = io.BytesIO(), PngInfo()
    mark.add_text(*SHEET_MARK)
    picture.save(stream, "PNG", pnginfo=mark)
    write_bytes(sheet, stream.getvalue())
    print(f"{sheet}: {len(rows)} queries and their nearest neighbors")


if __name__ == "__main__":
    main()
