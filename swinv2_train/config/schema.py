"""Schema of a run: one dataclass per section, with the documentation of each field below the field.

Defaults are defined only here; `conf/` contains the values that differ. Hydra composes against this schema, so other
keys cannot be set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swinv2_train.config.data import AugmentConfig as AugmentConfig
from swinv2_train.config.data import DataConfig
from swinv2_train.config.model import ModelConfig
from swinv2_train.config.resume import ResumeConfig
from swinv2_train.config.section import Section
from swinv2_train.config.stopping import EarlyStoppingConfig
from swinv2_train.config.sweep import SweepConfig
from swinv2_train.config.tasks import SimMIMConfig, TaskConfig


@dataclass
class RunConfig(Section):
    """Name and directory of the run."""

    name: str = "run"
    """Name of the run; an experiment file sets its own."""
    dir: str = "outputs/${run.name}"
    """Run directory: config, metrics, figures, and checkpoints. The same directory means the same run."""


@dataclass
@dataclass
class InitConfig(Section):
    """Reading of `init_from`. It starts a new run; a run that has begun resumes from its own checkpoints."""

    which: str = "newest"
    """If the source is a run or a directory of checkpoints: last (its newest valid checkpoint) or best (by that run's
    best_metric)."""
    ema: bool = False
    """Use the moving average of the weights instead of the weights."""
    label_map: str | None = None
    """Class of the source that provides the head row of each class of this run.

    null: the class of the same name, if both sides name their classes (a class without a match starts at 0); else the
    class of the same number, if both have equally many (but not from images to clips). names: by name, rejected if a
    name is missing. numbers: class n from class n. Anything else is a file with one line per class: a number, counted
    from 0.
    """


@dataclass
class OptimConfig(Section):
    """AdamW, its schedule, and the length of the run."""

    global_batch: int = 2048
    """Samples in one optimizer step over all ranks."""
    epochs: float | None = None
    """Length of the run in passes over the data; set this or `steps`."""
    steps: int | None = None
    """Length of the run in optimizer steps; set this or `epochs`."""
    lr: float = 1e-4
    """Peak learning rate for `lr_reference_batch` samples per step; scaled linearly to `global_batch`."""
    lr_reference_batch: int = 512
    """Batch size that `lr`, `warmup_lr`, and `min_lr` refer to; 0: no scaling."""
    lr_scale: float = 1.0
    """Factor on `lr`, `warmup_lr`, and `min_lr`, for comparisons at a fraction of a recipe's rate."""
    warmup_lr: float = 5e-7
    """Learning rate at the start of the warm-up, scaled like `lr`."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine and linear schedules, scaled like `lr`."""
    warmup_epochs: float | None = None
    """Length of the linear warm-up in epochs; set this or `warmup_steps`."""
    warmup_steps: int | None = None
    """Length of the linear warm-up in steps; set this or `warmup_epochs`."""
    schedule: str = "cosine"
    """cosine, linear, multistep or constant."""
    milestones: list[float] = field(default_factory=list)
    """multistep: epochs (or steps, if the length is set in steps) at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """multistep: the factor at each milestone."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW decay rates of the gradient moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices; biases, norms, CPB networks, logit scales, and tokens have none."""
    decay_cpb_and_scale: bool = False
    """Also decay CPB networks and logit scales, as the official SimMIM code does by a name mismatch."""
    layer_decay: float = 1.0
    """Learning rate factor per block, from the last block toward the patch embedding; 1: the same rate everywhere."""
    freeze: Any = None
    """Frozen parameters: null, a list of module or parameter names, such as [backbone.patch_embed,
    backbone.layers.0], or {stages: 2}: the backbone's patch embedding, position embedding, and first two stages,
    including the patch merging after each.

    Stochastic depth stays as configured. A resumed run may freeze more; to train frozen parameters, start a new run
    with `init_from`.
    """
    lr_scales: Any = None
    """Learning rate factors by module or parameter name, such as {backbone: 0.1, backbone.norm: 1}; null: none.

    They multiply the factors of `layer_decay`; the longest name wins. Here and in `freeze`, `backbone` means the
    backbone of any task, even if the model names it differently.
    """
    clip_norm: float = 5.0
    """Clip the gradient to this norm; 0: do not clip."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the fp32 weights with this decay, such as 0.9999; 0: none.

    In the first steps the decay is smaller: min(ema_decay, (1 + step) / (10 + step)).
    """


BUCKET_ELEMENTS = 50_000_000
"""Elements of gradients that are reduced together: enough to fill a network link, few enough to be complete early in
backward. DeepSpeed's default of 500 million takes a gigabyte in bf16, whatever the model."""


@dataclass
class EngineConfig(Section):
    """DeepSpeed: sharding, precision, accumulation."""

    zero_stage: int = 1
    """ZeRO stage: 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the parameters."""
    precision: str = "bf16"
    """bf16, fp16 (with dynamic loss scaling; GPU only) or fp32."""
    grad_accum_dtype: str | None = None
    """Dtype of gradient accumulation: fp32 or bf16; null: that of the precision."""
    micro_batch: int | None = None
    """Maximum number of samples per rank in one forward pass; the accumulation follows. null: a rank's entire part of
    the batch."""
    fp16_initial_scale_power: int = 16
    """fp16: the initial loss scale is 2 to this power."""
    compile: bool = False
    """Compile the blocks of the backbone with torch.compile."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Additional keys for the DeepSpeed config, merged over what this section sets."""

    @property
    def sums_in_fp32(self) -> bool:
        """True if the gradients of bf16 weights are summed in fp32, over micro-batches and ranks."""
        return (self.zero_stage, self.precision, self.grad_accum_dtype) == (1, "bf16", "fp32")

    @property
    def overlaps(self) -> bool:
        """True if DeepSpeed itself reduces gradients while backward computes others."""
        return bool(self.deepspeed.get("zero_optimization", {}).get("overlap_comm", False))

    @property
    def bucket_elements(self) -> int:
        """Elements of gradients that are reduced together."""
        given = self.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", BUCKET_ELEMENTS)
        return int(float(given))  # YAML reads 5e8 as text


@dataclass
class CheckpointConfig(Section):
    """When to save and what to keep."""

    every_steps: int = 1000
    """Save every N steps, and always at the end and on a stop signal; 0: only then."""
    keep_last: int = 3
    """Keep this many of the newest checkpoints."""
    keep_every_steps: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    keep_best: int = 0
    """Also keep this many with the best `best_metric`, among those that were evaluated at their own step."""
    best_metric: str = "eval/loss"
    """Evaluation metric that `keep_best` uses, as named in metrics.jsonl.

    Probe metrics (eval/probe/...) require that `probe.every_steps` divides `eval.every_steps`.
    """
    best_mode: str | None = None
    """min or max: the better direction of `best_metric`; null: the metric decides. A contradiction is rejected."""
    background: bool = True
    """Write during training, from a copy in host memory; false: wait, and save the memory of that copy."""
    retries: int = 2
    """Number of retries of a failed save."""
    retry_seconds: float = 10.0
    """Seconds to wait before each retry."""


@dataclass
class EvalConfig(Section):
    """When to evaluate on the held-out shards and when to draw figures."""

    every_steps: int = 1000
    """Evaluate every N steps and at the end; 0: never."""
    at_start: bool = False
    """Also evaluate (and probe) before the first step."""
    max_samples: int | None = None
    """Evaluate on the first N held-out samples; null: all."""
    figure_every_steps: int = 1000
    """Draw the task's figure every N steps and at the end; 0: never."""
    figure_samples: int = 8
    """Images in a figure."""
    signal_every_steps: int = 0
    """Record and plot the activation amplitude per block (paper, figure 2) every N steps; 0: never."""
    ema: bool = True
    """If `optim.ema_decay` is set, also evaluate the averaged weights: eval/ema_loss in addition to eval/loss."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    """End of the run before its last step."""


@dataclass
class ProbeConfig(Section):
    """Cheap quality measure of the encoder during pretraining: how well its frozen features separate labeled images."""

    shards: Any = ""
    """Labeled shards that the probes learn from; empty: no probe."""
    eval_shards: Any = ""
    """Labeled shards that the probes are scored on."""
    every_steps: int = 0
    """Probe every N steps and at the end; 0: only at the end."""
    max_samples: int = 5000
    """Maximum number of samples to read from each set."""
    knn: int = 20
    """Neighbors in the k-NN vote (cosine similarity, weighted, temperature 0.07); 0: no k-NN."""
    linear: bool = True
    """Fit a linear classifier (logistic regression) on the features."""


@dataclass
class GuardConfig(Section):
    """Response to bad losses and gradients. Non-finite values never reach the weights, regardless of these settings."""

    policy: str = "skip"
    """Response to a spike of the loss or the gradient norm.

    skip: skip the update. rollback: return to the newest checkpoint and avoid the batch from then on. stop: save the
    state before the update and end the run. off: do not look for spikes.
    """
    window: int = 128
    """Number of recent good steps to compare with."""
    min_steps: int = 64
    """Look for spikes only once this many good steps are recorded."""
    zscore: float = 10.0
    """A value is a spike above median + zscore * 1.4826 * median absolute deviation, and ..."""
    loss_ratio: float = 1.3
    """... for the loss above this multiple of its median,"""
    grad_norm_ratio: float = 5.0
    """... for the gradient norm above this multiple of its median."""
    rollback_batches: int = 1
    """Number of batches that a rollback avoids: the offending one and those just before it."""
    max_rollbacks: int = 10
    """Stop the run if it would roll back more often than this."""
    max_skipped_in_row: int = 20
    """Stop the run after N skipped steps in a row, for whatever reason."""


@dataclass
class WatchdogConfig(Section):
    """Time limits, in seconds, for parts of a run. If one passes, every rank writes its stacks and the job ends."""

    start_minutes: float = 30.0
    """From the start of a rank to the end of its first step: data, model, checkpoint, compilation."""
    step_minutes: float = 15.0
    """One optimizer step, including the wait for its data."""
    eval_minutes: float = 60.0
    """One evaluation or figure."""
    save_minutes: float = 30.0
    """One checkpoint, in the background or not, including retries."""


@dataclass
class TrackingConfig(Section):
    """Where numbers and figures go, in addition to metrics.jsonl and the console."""

    log_every_steps: int = 10
    """Fetch the numbers from the device, print a line, and write the files every N steps."""
    tensorboard: bool = True
    """Write TensorBoard event files to <run>/tb."""
    wandb: str = "disabled"
    """Weights & Biases: disabled, offline or online."""
    wandb_project: str | None = None
    """W&B project; null: that of the last start, else that of the variable WANDB_PROJECT, else swinv2-train."""
    wandb_entity: str | None = None
    """W&B entity (team or user)."""
    wandb_group: str | None = None
    """W&B group."""
    wandb_tags: list[str] = field(default_factory=list)
    """W&B tags, such as [paper,baseline]; an empty list: those of the environment variable WANDB_TAGS."""
    peak_tflops: float | None = None
    """Peak of one rank's device in TFLOPS at the precision of the run, which the logged MFU is a fraction of.

    null: that of the GPU by its name. The log has no MFU if the GPU is not in the table, on a CPU, or with
    `optim.freeze`.
    """


@dataclass
class LaunchConfig(Section):
    """Start of the ranks if no launcher has started the command."""

    nproc_per_node: int | None = None
    """Ranks on this machine; null: one per accelerator, or one if there is none."""
    device: str = "auto"
    """auto, cuda or cpu."""
    dry_run: bool = False
    """Print everything that would happen, and exit."""
    master_port: int | None = None
    """Port of the ranks' rendezvous; null: a free one, or 29500 with a hostfile."""
    master_addr: str | None = None
    """Address of rank 0 with a hostfile; null: that of the first host."""
    hostfile: str | None = None
    """A file of `NAME slots=N` lines: start N ranks on each of these hosts, through `deepspeed`, pdsh and ssh."""
    ssh_port: int | None = None
    """SSH port of the hosts, with a hostfile; null: ssh's own setting."""
    interface: str | None = None
    """Network interface for the sockets of NCCL and gloo; null: the one that leads to rank 0."""
    env_file: str | None = None
    """File of KEY=VALUE lines that every rank reads before it starts; variables that are already set are kept."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU in GiB, such as 39.49 for an A100-40G. A run that certainly needs more is rejected.

    null: that of the GPUs that the ranks run on; in a dry run that of this machine, if it has GPUs.
    """
    bus_gb_s: float | None = None
    """Bandwidth of an all-reduce over all ranks in GB/s, as the preflight prints it (`busbw` of nccl-tests).

    The dry run then prints the modeled fraction of a step that is lost to communication.
    """
    preflight_only: bool = False
    """Compare the ranks, time the network and a batch, print the result, and exit."""


@dataclass
class Config(Section):
    """One run, whole."""

    not_packed = False  # no setting: true in a dry run whose `images` would first be packed into `data.shards`

    run: RunConfig = field(default_factory=RunConfig)
    resume: Any = field(default_factory=ResumeConfig)
    init_from: str | None = None
    """Start a new run from weights: a run, a checkpoint, or a file (this package's, official, timm, Hugging Face)."""
    replay: str | None = None
    """Incident of a run, a file in <run>/incidents: rerun exactly that step, and change nothing."""
    imports: list[str] = field(default_factory=list)
    """Python modules of your own tasks, transforms, attention backends, and decoders; `--import MODULE` adds one.

    They must be importable, as for `task.module`. Installed packages may add theirs; see swinv2_train/tasks/README.md.
    """
    images: str | None = None
    """Pack this folder of images before the run, and train on its shards: see swinv2_train/data/README.md."""
    seed: int = 0
    """Determines the order of samples, augmentation, masks, initial weights, and stochastic depth."""
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
