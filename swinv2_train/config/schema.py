"""The schema of a run: one dataclass per section, the documentation of a field below the field.

This is the only place where a default stands; `conf/` holds what differs from it. Hydra composes against this schema,
so a key that is not here cannot be set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swinv2_train.config.model import ModelConfig
from swinv2_train.config.section import Section
from swinv2_train.config.sweep import SweepConfig
from swinv2_train.config.tasks import SimMIMConfig, TaskConfig


@dataclass
class RunConfig(Section):
    """Where the run lives."""

    name: str = "run"
    """Name of the run; an experiment file sets its own."""
    dir: str = "outputs/${run.name}"
    """Run directory: config, metrics, figures and checkpoints. The same directory means the same run."""


@dataclass
class ResumeConfig(Section):
    """What happens in a run directory that has been used. `resume=auto` and `resume=never` set the mode."""

    mode: str = "auto"
    """auto: continue from the newest valid checkpoint of the run directory, else start.

    never: refuse a used directory.
    """
    allow: list[str] = field(default_factory=list)
    """Differences from the checkpoint that are accepted and logged, instead of refused: [data] for training shards
    with other names, sizes, content or names of classes."""


@dataclass
class AugmentConfig(Section):
    """The training crop and flips, of every task."""

    scale: list[float] = field(default_factory=lambda: [0.67, 1.0])
    """Share of the image area that a random crop covers."""
    ratio: list[float] = field(default_factory=lambda: [0.75, 4 / 3])
    """Aspect ratio of a random crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip (for images without an up, such as satellite or microscope images)."""
    interpolation: str = "bilinear"
    """bilinear (the official SimMIM recipe) or bicubic (that of supervised training), in training and evaluation."""


@dataclass
class DataConfig(Section):
    """Shards and how they are read."""

    shards: Any = ""
    """Training shards: a path, a brace pattern such as photos-{000000..000012}.tar, a directory, a URL, or a list."""
    eval_shards: Any = ""
    """Shards held out from training; empty: no evaluation."""
    resolution: Any = 192
    """Side of the input in pixels, or [height, width]."""
    mean: Any = "imagenet"
    """Per-channel mean in [0, 1]: a list, `imagenet`, or `dataset` (from the dataset card)."""
    std: Any = "imagenet"
    """Per-channel standard deviation in [0, 1]: a list, `imagenet`, or `dataset`."""
    expected_samples: int | None = None
    """Samples that a recipe was written for: turns epochs into steps where no shards are at hand (dry runs)."""
    shuffle_samples: int = 131072
    """Samples are shuffled inside groups of about this many; blocks of samples are shuffled over the whole set."""
    num_workers: int = 4
    """Decoding processes per rank; 0 decodes in the training process."""
    prefetch_batches: int = 4
    """Micro-batches that each worker keeps ready, at least; together they hold a whole step's."""
    image: str | None = None
    """Member to read of samples with several images, such as left.png; null: the undotted, alphabetically first one."""
    background: Any = None
    """Color behind transparent pixels: white, black, mean (of `data.mean`), or numbers from 0 to 1; drop: ignore alpha.

    null: white, or what the run began with when it resumes. Nothing is transparent if the model reads the alpha channel
    (`model.in_channels=4`).
    """
    max_pixels: int = 200_000_000
    """Largest image that is decoded, in pixels (more than 4 channels count in proportion); larger ones are broken."""
    max_broken_share: float = 0.01
    """Stop the run when more than this share of the samples read so far (counted as at least 1000) was broken."""
    cache_dir: str = "~/.cache/swinv2_train/shards"
    """Where remote shards are kept."""
    cache_gib: float = 50.0
    """Upper bound on the cache of remote shards, per host, in GiB."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """The training crop."""
    crop_pct: float = 0.875
    """Evaluation: the share of the resized image's side that the centre crop covers (official: 224/256)."""
    crop_mode: str = "center"
    """Evaluation: center (resize the short side, take the centre) or squash (resize to the input, no crop)."""


@dataclass
class InitConfig(Section):
    """How `init_from` is read. It starts a new run; a run that has begun goes on from its own checkpoints."""

    which: str = "newest"
    """Of a run or a directory of checkpoints: its newest valid checkpoint, or the best by that run's best_metric."""
    ema: bool = False
    """Take the moving average of the weights instead of the weights."""
    label_map: str | None = None
    """The class of the source whose row of the head each class of this run takes.

    null: the class of the same name, if both sides name their classes (a class without one starts at 0); else the one
    of the same number, if there are equally many. names: by name, and refused if a name is missing. numbers: class n
    takes class n. Anything else is a file with one line per class: a number from 0.
    """


@dataclass
class OptimConfig(Section):
    """AdamW, its schedule, and the length of the run."""

    global_batch: int = 2048
    """Samples in one optimizer step over all ranks."""
    epochs: float | None = None
    """Length of the run in passes over the data; give this or `steps`."""
    steps: int | None = None
    """Length of the run in optimizer steps; give this or `epochs`."""
    lr: float = 1e-4
    """Peak learning rate for `lr_reference_batch` samples per step; scaled linearly to `global_batch`."""
    lr_reference_batch: int = 512
    """The batch that `lr`, `warmup_lr` and `min_lr` are given for; 0: no scaling."""
    lr_scale: float = 1.0
    """Multiplies `lr`, `warmup_lr` and `min_lr`, for comparisons at a share of a recipe's rate."""
    warmup_lr: float = 5e-7
    """Learning rate that the warm-up starts from, scaled like `lr`."""
    min_lr: float = 0.0
    """Learning rate that cosine and linear schedules end at, scaled like `lr`."""
    warmup_epochs: float | None = None
    """Length of the linear warm-up in epochs; give this or `warmup_steps`."""
    warmup_steps: int | None = None
    """Length of the linear warm-up in steps; give this or `warmup_epochs`."""
    schedule: str = "cosine"
    """cosine, linear, multistep or constant."""
    milestones: list[float] = field(default_factory=list)
    """multistep: epochs (or steps, where the length is given in steps) at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """multistep: the factor at each milestone."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's decay rates of the gradient moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices; biases, norms, CPB networks, logit scales and tokens have none."""
    decay_cpb_and_scale: bool = False
    """Also decay CPB networks and logit scales, as the official SimMIM code does by a name mismatch."""
    layer_decay: float = 1.0
    """Learning rate factor per block from the last towards the patch embedding; 1: the same rate everywhere."""
    freeze: Any = None
    """What does not train: null, a list of names of modules or parameters, such as [backbone.patch_embed,
    backbone.layers.0], or {stages: 2}: the backbone's patch embedding, its position embedding, and its first two stages
    with the patch merging after each.

    Stochastic depth stays as configured. A resume may freeze more; to train what was frozen, start a new run with
    `init_from`.
    """
    lr_scales: Any = None
    """Learning rate factors by name of a module or parameter, such as {backbone: 0.1, backbone.norm: 1}; null: none.

    They multiply those of `layer_decay`; the longest name wins. Here and in `freeze`, `backbone` means the backbone of
    any task, also where the model has it under another name.
    """
    clip_norm: float = 5.0
    """Clip the gradient to this norm; 0: do not clip."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the fp32 weights with this decay, such as 0.9999; 0: none.

    In the first steps the decay is smaller: min(ema_decay, (1 + step) / (10 + step)).
    """


@dataclass
class EngineConfig(Section):
    """DeepSpeed: sharding, precision, accumulation."""

    zero_stage: int = 1
    """ZeRO stage: 0 nothing sharded, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: str = "bf16"
    """bf16, fp16 (with dynamic loss scaling; GPU only) or fp32."""
    grad_accum_dtype: str | None = None
    """Accumulate gradients in fp32 or bf16; null: in the dtype of the precision."""
    micro_batch: int | None = None
    """Most samples per rank in one forward pass; the accumulation follows. null: a rank's whole share."""
    fp16_initial_scale_power: int = 16
    """fp16: the first loss scale is 2 to this power."""
    compile: bool = False
    """Compile the blocks of the backbone with torch.compile."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further keys for the DeepSpeed config, merged over what this section gives."""


@dataclass
class CheckpointConfig(Section):
    """When to save and what to keep."""

    every_steps: int = 1000
    """Save every so many steps (and always at the end and on a stop signal); 0: only then."""
    keep_last: int = 3
    """Keep this many of the newest checkpoints."""
    keep_every_steps: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    keep_best: int = 0
    """Also keep this many with the best `best_metric`, of those that were evaluated at their own step."""
    best_metric: str = "eval/loss"
    """The evaluation metric that `keep_best` goes by, as metrics.jsonl names it.

    One of the probes (eval/probe/...) needs `probe.every_steps` to divide `eval.every_steps`.
    """
    best_mode: str | None = None
    """min or max: which end of `best_metric` is the best; null: the metric decides. A contradiction is refused."""
    background: bool = True
    """Write while the training goes on, from a copy in host memory; false: wait, and save that memory."""
    retries: int = 2
    """How often a save that failed is tried again."""
    retry_seconds: float = 10.0
    """The wait before each retry."""


@dataclass
class EvalConfig(Section):
    """When to evaluate on the held-out shards and to draw figures."""

    every_steps: int = 1000
    """Evaluate every so many steps and at the end; 0: never."""
    at_start: bool = False
    """Also evaluate (and probe) before the first step."""
    max_samples: int | None = None
    """Evaluate on the first so many held-out samples; null: all."""
    figure_every_steps: int = 1000
    """Draw the task's figure every so many steps and at the end; 0: never."""
    figure_samples: int = 8
    """Images in a figure."""
    signal_every_steps: int = 0
    """Record and draw the activation amplitude per block (paper, figure 2) every so many steps; 0: never."""
    ema: bool = True
    """Where `optim.ema_decay` is set, evaluate the averaged weights as well: eval/ema_loss beside eval/loss."""


@dataclass
class ProbeConfig(Section):
    """A cheap view of the encoder during pretraining: how well its frozen features tell labelled images apart."""

    shards: Any = ""
    """Labelled shards that the probes learn from; empty: no probe."""
    eval_shards: Any = ""
    """Labelled shards that they are scored on."""
    every_steps: int = 0
    """Probe every so many steps and at the end; 0: only at the end."""
    max_samples: int = 5000
    """Read at most so many samples of each set."""
    knn: int = 20
    """Neighbours of the k-NN vote (cosine similarity, weighted, temperature 0.07); 0: no k-NN."""
    linear: bool = True
    """Fit a linear classifier (logistic regression) on the features."""


@dataclass
class GuardConfig(Section):
    """What happens when the numbers go bad. What is not finite never reaches the weights, whatever stands here."""

    policy: str = "skip"
    """What a spike of the loss or the gradient norm leads to.

    skip: leave the update out. rollback: go back to the newest checkpoint and leave the batch out from there on.
    stop: save the state before the update and end the run. off: do not look for spikes.
    """
    window: int = 128
    """Compare with this many of the last good steps."""
    min_steps: int = 64
    """Look for spikes only once there are so many of them."""
    zscore: float = 10.0
    """A value is a spike above median + zscore * 1.4826 * median absolute deviation, and ..."""
    loss_ratio: float = 1.3
    """... for the loss above this multiple of its median,"""
    grad_norm_ratio: float = 5.0
    """... for the gradient norm above this multiple of its median."""
    rollback_batches: int = 1
    """Batches that a rollback leaves out: the offending one and those just before it."""
    max_rollbacks: int = 10
    """Stop the run when it would roll back more often than this."""
    max_skipped_in_row: int = 20
    """Stop the run when so many steps in a row were skipped, for whatever reason."""


@dataclass
class WatchdogConfig(Section):
    """How long a part of the run may take before every rank writes down where it stands and the job ends."""

    start_minutes: float = 30.0
    """From the start of a rank to the end of its first step: data, model, checkpoint, compilation."""
    step_minutes: float = 15.0
    """One optimizer step, the wait for its data included."""
    eval_minutes: float = 60.0
    """One evaluation or figure."""
    save_minutes: float = 30.0
    """One checkpoint, in the background or not, retries included."""


@dataclass
class TrackingConfig(Section):
    """Where numbers and pictures go, beside metrics.jsonl and the console."""

    log_every_steps: int = 10
    """Fetch the numbers from the device, print a line and write the files every so many steps."""
    tensorboard: bool = True
    """Write TensorBoard event files to <run>/tb."""
    wandb: str = "disabled"
    """Weights & Biases: disabled, offline or online."""
    wandb_project: str = "swinv2-train"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B entity (team or user)."""
    wandb_group: str | None = None
    """W&B group."""
    peak_tflops: float | None = None
    """Peak of one rank's device in TFLOPS at the precision of the run, which the logged MFU is a fraction of.

    null: that of the GPU by its name. The log has no MFU if the GPU is not in the table, on a CPU, or with
    `optim.freeze`.
    """


@dataclass
class LaunchConfig(Section):
    """How the ranks are started when no launcher is around the command."""

    nproc_per_node: int | None = None
    """Ranks on this machine; null: one per accelerator, one without any."""
    device: str = "auto"
    """auto, cuda or cpu."""
    dry_run: bool = False
    """Print everything that would happen, and stop."""
    master_port: int | None = None
    """Port of the ranks' rendezvous; null: a free one, and 29500 with a hostfile."""
    master_addr: str | None = None
    """Address of rank 0, with a hostfile; null: that of the first host."""
    hostfile: str | None = None
    """A file of `NAME slots=N` lines: start N ranks on each of these hosts, through `deepspeed`, pdsh and ssh."""
    ssh_port: int | None = None
    """Port of the hosts' ssh, with a hostfile; null: what ssh takes."""
    interface: str | None = None
    """Network interface of NCCL's and gloo's sockets; null: the one that leads to rank 0."""
    env_file: str | None = None
    """A file of KEY=VALUE lines that every rank reads before it starts; what is set already stays."""
    preflight_only: bool = False
    """Compare the ranks, time the network and a batch, say so, and stop."""


@dataclass
class Config(Section):
    """One run, whole."""

    run: RunConfig = field(default_factory=RunConfig)
    resume: Any = field(default_factory=ResumeConfig)
    init_from: str | None = None
    """Start a new run from weights: a run, a checkpoint, or a file (ours, official, timm's, Hugging Face's)."""
    replay: str | None = None
    """An incident of a run, a file in <run>/incidents: run exactly that step again, and change nothing."""
    seed: int = 0
    """The order of samples, augmentation, masks, initial weights and stochastic depth all hang on it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=SimMIMConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
