"""README of an export: what is known about a model, and nothing else.

Facts come from the weights and their metadata; from their run, if there is one (its config, the runs it started from,
the dataset card next to its shards, its evaluations); and from the export itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2_train.checkpoint.identity import CLIP_MODEL_KEYS
from swinv2_train.config.checks import resolution
from swinv2_train.config.compose import from_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.paths import user_path
from swinv2_train.config.tasks import DETECTIONS, FEATURES, LOGITS, PIXEL_LOGITS
from swinv2_train.config.values import scale_pairs, value_settings
from swinv2_train.interop.card_data import dataset_card, role_in_training
from swinv2_train.interop.export_facts import clip_facts
from swinv2_train.interop.input_code import input_code
from swinv2_train.interop.model_rows import Rows, listed, model_rows
from swinv2_train.interop.onnx import LEVELS
from swinv2_train.interop.peers import version_of
from swinv2_train.interop.target import OWN
from swinv2_train.reading import read_object
from swinv2_train.redact import redact
from swinv2_train.text import as_markdown, counted

if TYPE_CHECKING:
    from swinv2_train.config.schema import Config
    from swinv2_train.data.card import Card
    from swinv2_train.interop.input_check import InputCheck
    from swinv2_train.interop.load import LoadedModel

PAPER = "https://arxiv.org/abs/2111.09883"
_LONGEST_CHAIN = 16
_LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
_PIPELINES = {LOGITS: "image-classification", PIXEL_LOGITS: "image-segmentation", DETECTIONS: "object-detection"}
_NAMES = {FEATURES: "features", DETECTIONS: "levels of the feature pyramid"}
_SHOWN_CLASSES = 20
_CROP = ("crop_pct", "crop_mode")
_EARLIER_INPUT = {"window_rule": "per-axis", "background": "drop"}
"""Input of evaluations by earlier versions, which had no choice and recorded none."""
_OWN_CODE = {
    PIXEL_LOGITS: "\nlogits = model.scores(images)",
    DETECTIONS: "\nfound = model(images, torch.tensor([images.shape[-2:]] * len(images)))  # of each image",
}
"""Lines that compute the outputs, in this package."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of an export with the model that it was made of."""

    by: str
    """Names and versions of the libraries that computed it."""
    images: int
    difference: float
    """Largest difference of all outputs."""
    largest: float
    """Largest output itself."""
    rounding: float | None
    """Largest change of the outputs by rounding to half precision; None for fp32."""
    output: str
    """A value of `TaskConfig.OUTPUT`."""
    parameters: int
    """Parameters of the exported model."""
    input: InputCheck
    """Comparison from an encoded image to the input."""

    @property
    def outputs(self) -> str:
        """Name of the outputs in a sentence."""
        return _NAMES.get(self.output, LOGITS)

    @property
    def apart(self) -> str:
        """Verb for the outputs of the export and those of the original model."""
        return f"differ by at most {self.difference:.2g} from" if self.difference else "equal"


def model_card(
    loaded: LoadedModel,
    layout: str,
    name: str,
    *,
    dtype: str,
    weights: str,
    compared: Comparison,
    notes: Sequence[str] = (),
) -> str:
    """Return the card as Markdown.

    Args:
        layout: exported format.
        name: name of the directory, for the example code.
        weights: `raw` or `ema`.
        notes: lines for the user.
    """
    run = run_directory(loaded.source.path)
    trained = _resolved(run)
    card = dataset_card(trained.data.shards) if trained else None
    sections = [
        ("Model", _table(model_rows(loaded, compared.parameters, dtype, weights))),
        ("Use", _usage(loaded, layout, name, compared)),
        ("Input", f"{_table(_input_rows(loaded, compared.input, card))}\n\n```python\n{input_code(loaded)}```"),
        ("Classes", _classes(loaded)),
        ("Training", _table(_training_rows(trained)) if trained else ""),
        ("Started from", _chain(trained, run)),
        ("Data", _data(card)),
        ("Results", _results(loaded, run, weights, trained)),
        ("Export", _table(_export_rows(loaded, layout, compared, notes))),
        ("License", "Not stated. Name one here before you publish these weights."),
    ]
    title = as_markdown(trained.run.name if trained else loaded.config.model.name)
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections if text)
    return redact(
        f"{_front_matter(layout, compared.output, compared.input.noun)}# {title}\n\n{_summary(loaded)}\n\n{body}\n"
    )


def _front_matter(layout: str, output: str, noun: str) -> str:
    """Return the header that model hubs read.

    Args:
        output: a value of `TaskConfig.OUTPUT`.
        noun: image or clip.
    """
    lines = [f"library_name: {_LIBRARIES[layout]}"] if layout in _LIBRARIES else []
    task = _PIPELINES.get(output, "image-feature-extraction")
    if output == DETECTIONS and layout != OWN:  # a program without the heads
        task = "image-feature-extraction"
    if noun == "clip":
        task = "video-classification" if output == LOGITS else "feature-extraction"
    lines += [f"pipeline_tag: {task}", "tags:", "- swinv2", f"- {task}"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _summary(loaded: LoadedModel) -> str:
    task = loaded.config.task
    return f"A Swin Transformer V2 ([paper]({PAPER})) {task.PURPOSE or f'for the task {task.title}'}."


def _input_rows(loaded: LoadedModel, check: InputCheck, card: Card | None) -> Rows:
    """Return the rows of the input.

    Args:
        card: dataset card of the training images; None: unknown.
    """
    data = loaded.config.data
    # Gray and color images of any file may have an alpha channel, others only if those of the training have.
    may_be_transparent = not data.frames and (
        loaded.config.model.in_channels in (1, 3) or (card is not None and card.alpha > 0)
    )
    height, width = resolution(loaded.config)
    if data.crop_mode == "squash":
        crop = f"resize to {height}x{width}, regardless of the aspect ratio"
    elif data.crop_mode == "native":
        crop = "the center of the image in its own size; smaller ones are enlarged"
    else:
        part = "" if data.crop_pct == 1 else f"{data.crop_pct:.4g} of "
        crop = f"resize so that the crop covers {part}the tighter side, then the center"
    range_text = ""
    if data.scale is not None:
        pairs = listed(f"{low:.6g} to {high:.6g}" for low, high in scale_pairs(data.scale))
        nodata = "" if data.nodata is None else f", nodata {data.nodata}"
        range_text = f"{pairs} becomes 0 to 1, clipped; missing pixels (NaN{nodata}) become {data.fill}"
    largest = " or ".join(f"{2**bits - 1} ({bits} bits)" for bits in check.bits)
    size = f"{loaded.config.model.in_channels} channels, {height}x{width} pixels"
    if data.frames:
        size += f", {data.frames} frames at stride {data.frame_stride}"
    return [
        ("size", size),
        ("preparation", f"{crop}; {data.augment.interpolation}, antialiased"),
        *([("evaluated with", own)] if (own := loaded.config.task.preparation(loaded.config)) else []),
        *([("transparency", _transparency(data.background))] if may_be_transparent else []),
        ("values", f"{range_text or f'divided by {largest}'}, minus mean, divided by standard deviation"),
        ("mean", listed(f"{value:.6g}" for value in loaded.mean)),
        ("standard deviation", listed(f"{value:.6g}" for value in loaded.std)),
    ]


def _transparency(background: Any) -> str:
    return "dropped" if background == "drop" else f"put on {background} before all else"


def _classes(loaded: LoadedModel) -> str:
    names = loaded.class_names or []
    if not names:
        return ""
    more = f", and {len(names) - _SHOWN_CLASSES:,} more" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names):,}: {', '.join(map(as_markdown, names[:_SHOWN_CLASSES]))}{more}."


def run_directory(path: Path) -> Path | None:
    """Return the run that a checkpoint or an exported file belongs to, by its `resolved.yaml`; None if there is
    none."""
    return next((place for place in [path, *path.parents][:3] if (place / "resolved.yaml").is_file()), None)


def _resolved(run: Path | None) -> Config | None:
    try:
        return from_yaml(run / "resolved.yaml", only_read=True) if run else None
    except ConfigError:  # written by a version with other keys; nothing is known
        return None


def _training_rows(config: Config) -> Rows:
    optim, augment = config.optim, config.data.augment
    length = counted(optim.epochs, "epoch", "g") if optim.epochs is not None else counted(optim.steps, "step", ",")
    rate = f"{optim.lr * optim.lr_scale:g}" + (
        f" per {optim.lr_reference_batch} samples" if optim.lr_reference_batch else ""
    )
    warmup = optim.warmup_steps if optim.warmup_epochs is None else optim.warmup_epochs
    unit = "step" if optim.warmup_epochs is None else "epoch"
    rows = [
        ("run", config.run.name),
        ("task", config.task.name),
        ("length", length),
        ("global batch", f"{optim.global_batch:,}"),
        (
            "learning rate",
            f"{rate}, {optim.schedule}" + (f", {counted(warmup, unit, 'g')} of warm-up" if warmup else ""),
        ),
        ("optimizer", f"AdamW, betas {listed(optim.betas)}, eps {optim.eps:g}, weight decay {optim.weight_decay:g}"),
        ("gradient clipping", f"{optim.clip_norm:g}" if optim.clip_norm else "none"),
        ("drop path", f"{config.model.drop_path:g}"),
        ("precision", f"{config.engine.precision}, ZeRO {config.engine.zero_stage}"),
        *config.task.training_preparation(config),
        ("flips", f"horizontal {augment.hflip:g}, vertical {augment.vflip:g}"),
    ]
    if optim.layer_decay != 1:
        rows.append(("layer-wise decay of the learning rate", f"{optim.layer_decay:g}"))
    if optim.ema_decay:
        rows.append(("moving average of the weights", f"{optim.ema_decay:g}"))
    task = {key: value for key, value in vars(config.task).items() if not (key == "name" or key.startswith("_"))}
    if task["module"] is None:
        del task["module"]
    rows.extend((key.replace("_", " "), _value(value)) for key, value in task.items())
    rows.append(("seed", str(config.seed)))
    return rows


def _chain(config: Config | None, run: Path | None) -> str:
    """Return the runs and files that this one started from, nearest first."""
    lines: list[str] = []
    seen = {run}
    while config is not None and config.init_from and len(lines) < _LONGEST_CHAIN:
        try:
            place = user_path(config.init_from)
        except ConfigError:  # it was written on a machine with other users
            place = Path(config.init_from)
        run = run_directory(place)
        config = _resolved(run)
        if config is None or run in seen:
            lines.append(as_markdown(place.name))
            break
        seen.add(run)
        lines.append(f"the run {as_markdown(config.run.name)} ({config.task.name})")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _data(card: Card | None) -> str:
    if card is None:
        return ""
    rows = [(name, value) for name, value in card.rows() if name != "split"]
    return _table(rows)


def _names(shards: Any) -> str:
    return listed(Path(str(place)).name for place in (shards if isinstance(shards, (list, tuple)) else [shards]))


def _results(loaded: LoadedModel, run: Path | None, weights: str, trained: Config | None) -> str:
    parts = []
    if loaded.source.metrics:
        rows = [(name, _number(value)) for name, value in loaded.source.metrics.items()]
        if trained is not None and trained.data.eval_shards:
            unit = "videos" if trained.data.frames else "images"
            rows.insert(0, ("data", f"{_names(trained.data.eval_shards)} (held-out {unit} of the run)"))
        parts.append("At this step of the training:\n\n" + _table(rows))
    found = last_evaluation(loaded, run, weights)
    if found:
        metrics = [(name, _number(value)) for name, value in found["metrics"].items()]
        broken = f", and {len(found['broken']):,} broken" if found.get("broken") else ""
        rows = [
            ("data", _names(found.get("data")) + role_in_training(found.get("data"), trained)),
            ("samples", f"{found.get('samples', 0):,}{broken}"),
            ("computed in", str(found.get("precision", "not known"))),
            *metrics,
        ]
        parts.append("By swinv2-eval:\n\n" + _table(rows))
    return "\n\n".join(parts)


def evaluated_input(config: Config, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Return the record of an evaluation's input in results.json: all inputs other than weights and data."""
    data, model = config.data, config.model
    clips = {key: getattr(model, key) for key in CLIP_MODEL_KEYS} if model.temporal_patch else {}
    clips |= clip_facts(config)
    crop = {} if config.task.SIZES_DIFFER else {key: getattr(data, key) for key in _CROP}  # entire images
    return {
        "resolution": list(resolution(config)),
        "window": model.window,
        "pretrained_window": model.pretrained_window,
        "window_rule": model.window_rule,
        **clips,
        **crop,
        "interpolation": data.augment.interpolation,
        "background": data.background,
        "mean": mean,
        "std": std,
        **value_settings(data),
        **config.task.evaluation_settings(),
    }


def last_evaluation(loaded: LoadedModel, run: Path | None, weights: str) -> dict[str, Any] | None:
    """Return the newest `evaluations/*/results.json` of the run for this model: these weights, with their own input and
    classes, on all samples of some data."""
    files = run.glob("evaluations/*/results.json") if run else ()
    own = evaluated_input(loaded.config, loaded.mean, loaded.std)
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            content = read_object(path)
            same = Path(content["checkpoint"]).resolve() == loaded.source.path.resolve()
            given = {**_EARLIER_INPUT, **content["input"]}
            given = {key: value for key, value in given.items() if key in own or key not in _CROP}
            same = same and content["ema"] == (weights == "ema") and given == own
            partial = [content[key] for key in ("label_map", "real_labels", "max_samples")]
            if same and partial == [None] * 3 and isinstance(content["metrics"], dict):
                return content
        except (OSError, ValueError, KeyError, TypeError):  # written by another version, or damaged
            continue
    return None


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else "not known"


def _export_rows(loaded: LoadedModel, layout: str, compared: Comparison, notes: Sequence[str]) -> Rows:
    inputs = counted(compared.images, compared.input.noun)
    rows = [
        ("format", layout),
        ("made from", f"{loaded.source.path.name} ({loaded.source.format})"),
        ("made with", ", ".join(map(version_of, ("swinv2-train", "torch")))),
        (
            "checked with",
            f"{compared.by}: on {inputs} the {compared.outputs} {compared.apart} "
            f"those of the original model (the largest is {compared.largest:.3g})",
        ),
        ("input checked on" if compared.input.agrees else "input differs", compared.input.sentence(compared.outputs)),
    ]
    if compared.rounding is not None:
        on = f"on those {compared.input.noun}s; compared separately"
        moved = f"moved the {compared.outputs} by at most {compared.rounding:.2g} {on}"
        rows.append(("rounding of the weights", moved))
    rows += [("note", note) for note in notes]
    return rows


def _usage(loaded: LoadedModel, layout: str, name: str, compared: Comparison) -> str:
    """Return code that loads this format; `images` is the batch that "Input" describes."""
    output = {FEATURES: "features", DETECTIONS: ", ".join(LEVELS)}.get(compared.output, "logits")
    listed = output if compared.output == DETECTIONS else f"({output},)"
    name = name if name.isprintable() and not set(name) & set('"\\`') else "OUT"
    frames = [loaded.config.data.frames] if loaded.config.data.frames else []
    shape = ", ".join(map(str, (loaded.config.model.in_channels, *frames, *resolution(loaded.config))))
    code = {
        "swinv2-train": f'from swinv2_train.interop.load import load_model\n\nmodel = load_model("{name}").model'
        + _OWN_CODE.get(compared.output, ""),
        "timm": f'import timm\n\nmodel = timm.create_model("local-dir:{name}", pretrained=True).eval()\n'
        f"{output} = model(images)",
        "huggingface": _huggingface_code(name, output, compared.input, loaded.config.model.in_channels),
        "onnx": f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}/model.onnx")\n'
        f'{listed} = session.run(None, {{"images": images}})  # float32 arrays',
        "torch-export": f'import torch\n\nmodel = torch.export.load("{name}/model.pt2").module()\n'
        f"{output} = model(images)",
    }[layout]
    given = f"`images`: (batch, {shape}) float32, each made by `prepare` below."
    if compared.output == PIXEL_LOGITS:
        given += (
            " `logits`: (batch, classes, height, width), a score for every class and pixel. For a larger image, cut "
            "windows of this size, or use swinv2-predict with the original weights."
        )
    if compared.output == DETECTIONS and layout != OWN:
        given += (
            " `p2` to `p6`: (batch, channels, height, width) each, the levels of the feature pyramid, with 1/4 to 1/64 "
            "of the size. For boxes, use swinv2-predict with the original weights."
        )
    return f"```python\n{code}\n```\n\n{given}"


def _huggingface_code(name: str, output: str, check: InputCheck, channels: int) -> str:
    kind = "AutoModelForImageClassification" if output == "logits" else "AutoModel"
    result = "logits" if output == "logits" else "pooler_output"
    load = f'model = {kind}.from_pretrained("{name}").eval()\n'
    if not check.agrees:  # the processor would not create the input of this model
        return f"from transformers import {kind}\n\n{load}{output} = model(images).{result}"
    pictures, given = "pictures", "a list of PIL images, upright"
    if channels != 3 or 8 not in check.bits:
        pictures = 'pictures, input_data_format="channels_first"'
        given = f"a list of (channels, height, width) arrays of {'uint8' if 8 in check.bits else 'uint16 as float32'}"
    return (
        f"from transformers import AutoImageProcessor, {kind}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        f"{load}"
        f'{output} = model(**processor({pictures}, return_tensors="pt")).{result}  # pictures: {given}'
    )


def _table(rows: Rows) -> str:
    lines = [f"| {as_markdown(name)} | {as_markdown(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = listed(value[:8])
        return f"{shown}, ... ({len(value)} values)" if len(value) > 8 else shown
    return "none" if value is None else str(value)
