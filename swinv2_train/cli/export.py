"""`swinv2-export`: convert weights for timm, Hugging Face, ONNX, or torch.export, and verify that the outputs agree.

Exit status: 0 done; 1 failed (outputs differ, damaged checkpoint, full disk); 2 usage error (missing path, existing
target, a format that cannot represent the model, a missing package); 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.loading import loading
from swinv2_train.cli.manual import manual
from swinv2_train.cli.plugins import add_imports, use_imports
from swinv2_train.cli.values import file_path, whole
from swinv2_train.cli.weight_arguments import add_checkpoint, add_choice, changes_of, check_weights
from swinv2_train.config.errors import ConfigError
from swinv2_train.exit_codes import FINISHED
from swinv2_train.text import counted

if TYPE_CHECKING:  # imports torch
    from swinv2_train.config.schema import Config
    from swinv2_train.interop.export import Exported
    from swinv2_train.interop.load import LoadedModel

FORMATS = ("swinv2-train", "timm", "huggingface", "onnx", "torch-export")
_MOST_IMAGES = 16
_MEMORY = "use a lower data.resolution, or compare fewer --images"
"""Remedies for a lack of memory."""
_HELP = """\
formats:
  swinv2-train   model.safetensors with everything that swinv2-eval, -predict, -export, and init_from need
  timm           for timm.create_model("local-dir:OUT", pretrained=True)
  huggingface    for transformers' AutoModelForImageClassification and AutoImageProcessor
  onnx           model.onnx: normalized float32 images, any batch size, this resolution
  torch-export   model.pt2 for torch.export.load: the same

Every directory contains a README.md, the model card. Before an export is reported as done, the other side loads it and
both are compared on encoded images. If the outputs for the same input differ by more than 1e-5 (onnx: 1e-4; relative to
the largest output if that is above 1), nothing is left. Resizing, cropping, and scaling are compared too. If the other
side cannot create the same input, the command and the README report the size of the difference and the step that causes
it, and the README contains Python code that creates the correct input.

The window and the resolution may be changed: model.window=16 data.resolution=256. A SimMIM checkpoint becomes a feature
extractor, and so do a segmenter and a detector for timm and huggingface (in the swinv2-train format all stay complete).
Programs of a segmenter return a score for every class and pixel, those of a detector the levels p2 to p6 of its feature
pyramid. A model of clips becomes a program (onnx, torch-export) for clips of its own number of frames, data.frames.

examples:
  swinv2-export outputs/in1k_tiny_256 export/timm --format timm --which best
  swinv2-export outputs/in1k_tiny_256 export/hf --format huggingface --dtype bf16 --images my-images
  swinv2-export checkpoint=outputs/in1k_tiny_256 out=export/onnx-384 format=onnx data.resolution=384 model.window=12

exit status: 0 done; 1 failed; 2 usage error; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = _parser()
    offer(parser)
    arguments = parser.parse_args(argv)
    end(run_command("swinv2-export", lambda: _run(arguments), memory=_MEMORY), whole_process=argv is None)


def _parser() -> Parser:
    parser = Parser(
        prog="swinv2-export",
        usage="swinv2-export CHECKPOINT OUT --format FORMAT [options] [KEY=VALUE ...]",
        description="Write weights in the format of another library, load them there, and compare the outputs of both.",
        epilog=f"{_HELP}\n\n{manual('interop')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("out", metavar="OUT", type=file_path, help="a new directory; its parents are created")
    add_choice(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="see below")
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="dtype of the stored weights; rounds to nearest (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help=f"also compare on these images or videos: a folder, a pattern or a file, at most {_MOST_IMAGES} of them",
    )
    parser.add_argument(
        "--bits",
        type=whole(),
        choices=[8, 16],
        help="depth of the images that the model is for (default: what its weights record, or else 8)",
    )
    add_imports(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from swinv2_train.data.samples import IMAGE, VIDEO
    from swinv2_train.interop.images import find_images
    from swinv2_train.interop.target import check_room, check_target

    use_imports(arguments)
    check_target(arguments.out, arguments.format, arguments.dtype)
    config, source = check_weights(arguments)
    kind = VIDEO if config.data.frames else IMAGE
    images = find_images([arguments.images], kind=kind).files[:_MOST_IMAGES] if arguments.images else None
    _refuse_inference(arguments, config)
    check_room(arguments.out, source.shapes.values(), arguments.dtype)
    loading("swinv2-export", str(source.path))

    from swinv2_train.interop.clips import encoded_videos
    from swinv2_train.interop.export import export
    from swinv2_train.interop.images import encoded_images
    from swinv2_train.interop.load import load_model

    loaded = load_model(arguments.checkpoint, changes_of(arguments), which=arguments.which, ema=arguments.ema)
    done = export(
        loaded,
        arguments.out,
        arguments.format,
        dtype=arguments.dtype,
        pictures=None if images is None else (encoded_videos if kind == VIDEO else encoded_images)(images, loaded),
        bits=arguments.bits,
        weights="ema" if arguments.ema else "raw",
    )
    _report(done, loaded)
    return FINISHED


def _refuse_inference(arguments: argparse.Namespace, config: Config) -> None:
    """Check that no setting of the inference is given for a format that cannot record it.

    Raises:
        ConfigError: naming the setting.
    """
    fields = {f"task.{field}" for field in config.task.PREDICT_OPTIONS.values()}
    for item in arguments.changes if arguments.format != FORMATS[0] else ():
        key, _, value = item.partition("=")
        if key in fields:
            fix = (
                f"has no effect in the format {arguments.format}, which computes one input of data.resolution; omit it"
            )
            raise ConfigError(key, value, fix)


def _report(done: Exported, loaded: LoadedModel) -> None:
    from swinv2_train.cli.checkpoint_display import size_text

    compared = done.compared
    print(f"{done.path}: made from {loaded.source.path}")
    width = max(map(len, done.files))
    for name, size in done.files.items():
        print(f"  {name:<{width}}  {size_text(size)}")
    print(
        f"checked with {compared.by}: on {counted(compared.images, compared.input.noun)} the {compared.outputs} "
        f"{compared.apart} those of the original model (the largest is {compared.largest:.3g})"
    )
    print(
        f"input {'checked on' if compared.input.agrees else 'differs on'} {compared.input.sentence(compared.outputs)}"
    )
    if compared.rounding is not None:
        print(f"rounding the weights moved the {compared.outputs} by at most {compared.rounding:.2g}")
    for note in (*loaded.source.notes, *done.notes):
        print(f"note: {note}")


if __name__ == "__main__":
    main()
