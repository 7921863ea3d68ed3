"""The one source of defaults, YAML keys and command-line options: small dataclasses, a line of why each field.

Every field is reachable on the command line by its dotted name (``--optim.lr 0.001``) and in YAML by the same
path. The defaults are the reference recipe: ResNet50, frozen stem, three-layer head, BCE, Adam.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shards.errors import UserError

#: Where crop and resize run.
Geometry = Literal["auto", "device", "cpu"]
#: What an undecodable image does to a run.
OnError = Literal["replace", "mask", "stop"]


@dataclass
class DataConfig:
    """How posters become batches."""

    image_size: int = 224
    """Side of the square input in pixels; 224 is what ImageNet backbones were trained at."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Smallest and largest share of a poster's area that a training crop takes (torchvision's RandomResizedCrop)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio (width / height) of a training crop before it is resized to a square."""
    flip: float = 0.5
    """Probability of a horizontal flip; titles are unreadable either way once posters are cleaned."""
    crop_pct: float = 1.0
    """Evaluation takes the central square of this share of the short side; 1.0 sees most of a poster."""
    workers: int = 0
    """Decoding threads per process; 0 divides the cores of the machine by its processes."""
    prefetch: int = 4
    """Batches decoded ahead of the step that needs them; more only costs memory."""
    geometry: Geometry = "auto"
    """Where crops are cut and resized: on the device, or on the cpu by the decoding threads; auto is device on GPUs."""
    order: Literal["global", "window"] = "global"
    """Shuffle: global permutes all samples; window only within groups of shards, for sets that do not fit in memory."""
    window: int = 16
    """Shards in a group of order window; a node then reads from about this many files at a time."""
    on_error: OnError = "replace"
    """An undecodable image is replaced by another sample, masked (weighs nothing), or stops the run."""
    max_errors: float = 0.01
    """Share of a split's samples that may be undecodable before the run stops and lists them."""


@dataclass
class ModelConfig:
    """Which network."""

    name: str = "resnet50"
    """Any timm architecture, with or without a pretrained tag (timm.list_models())."""
    pretrained: bool = True
    """Start from timm's weights on the hub; a start from scratch needs far more posters than most have."""
    weights: str | None = None
    """A local weights file (.safetensors, or .pth loaded with weights_only) instead of the hub's."""
    head: Literal["mlp", "linear"] = "mlp"
    """mlp: hidden layers with ReLU and dropout (the reference); linear: one layer, loadable by plain timm."""
    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the mlp head's hidden layers."""
    dropout: float = 0.5
    """Dropout before each layer of the mlp head, or before the linear one."""
    freeze: tuple[str, ...] = ("stem",)
    """Modules kept as they are, BatchNorm statistics included: 'stem' (for ResNet conv1 and bn1) or module names."""


@dataclass
class OptimConfig:
    """How weights move."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; the reference uses Adam."""
    lr: float = 0.0015
    """Peak learning rate, for the global batch."""
    weight_decay: float = 0.0
    """Decay per update; not applied to biases and normalisation (vectors)."""
    momentum: float = 0.9
    """Momentum of SGD; the others ignore it."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after warm-up, stepped once per update whatever the number of processes."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly from zero."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""


@dataclass
class TrainConfig:
    """How long, how large, how exact."""

    epochs: int = 30
    """Upper bound; early stopping usually ends sooner."""
    batch_size: int = 64
    """Global batch: samples per update over all processes and accumulation steps together."""
    accumulation: int = 1
    """Parts into which each process cuts its share of a global batch, to save memory; the update stays the same."""
    eval_batch_size: int = 64
    """Samples per forward pass in evaluation, per process; results do not depend on the number of processes."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto takes what `accelerate launch` was told."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and dropout."""
    patience: int = 5
    """Epochs without a lower validation loss before training stops; 0 never stops early."""
    channels_last: bool = True
    """Memory layout of images and weights; faster for convolutions on GPUs and CPUs."""
    compile: bool = False
    """torch.compile the model; needs a working compiler at run time."""
    checkpoint_steps: int = 0
    """Save a checkpoint every so many updates, besides one per epoch; 0 only per epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; two survive a damaged newest one."""
    log_steps: int = 20
    """Updates between two rows of the log."""
    tensorboard: bool = True
    """Write TensorBoard events beside the CSV log, where tensorboard is installed."""


@dataclass
class Config:
    """Everything that decides a run, apart from the folders it reads and writes."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Raise UserError for values that no run could use, naming the key."""
        checks = [
            ("data.image_size", self.data.image_size >= 16, "at least 16 pixels"),
            (
                "data.crop_scale",
                0 < self.data.crop_scale[0] <= self.data.crop_scale[1] <= 1,
                "0 < low <= high <= 1",
            ),
            ("data.crop_ratio", 0 < self.data.crop_ratio[0] <= self.data.crop_ratio[1], "0 < low <= high"),
            ("data.flip", 0 <= self.data.flip <= 1, "a probability"),
            ("data.crop_pct", 0 < self.data.crop_pct <= 1, "over 0, at most 1"),
            ("data.workers", self.data.workers >= 0, "0 (automatic) or more"),
            ("data.prefetch", self.data.prefetch >= 1, "at least 1"),
            ("data.window", self.data.window >= 1, "at least 1"),
            ("data.max_errors", 0 <= self.data.max_errors <= 1, "a share from 0 to 1"),
            ("model.hidden", all(width >= 1 for width in self.model.hidden), "positive widths"),
            ("model.dropout", 0 <= self.model.dropout < 1, "at least 0, under 1"),
            ("optim.lr", self.optim.lr > 0, "positive"),
            ("optim.weight_decay", self.optim.weight_decay >= 0, "0 or more"),
            ("optim.warmup_steps", self.optim.warmup_steps >= 0, "0 or more"),
            ("optim.clip_norm", self.optim.clip_norm >= 0, "0 (no clipping) or more"),
            ("train.epochs", self.train.epochs >= 1, "at least 1"),
            ("train.batch_size", self.train.batch_size >= 1, "at least 1"),
            ("train.accumulation", self.train.accumulation >= 1, "at least 1"),
            ("train.eval_batch_size", self.train.eval_batch_size >= 1, "at least 1"),
            ("train.seed", self.train.seed >= 0, "0 or more"),
            ("train.patience", self.train.patience >= 0, "0 (never) or more"),
            ("train.checkpoint_steps", self.train.checkpoint_steps >= 0, "0 (per epoch only) or more"),
            ("train.keep_checkpoints", self.train.keep_checkpoints >= 1, "at least 1"),
            ("train.log_steps", self.train.log_steps >= 1, "at least 1"),
        ]
        for key, good, wanted in checks:
            if not good:
                section, name = key.split(".")
                raise UserError(f"{key} must be {wanted}, not {getattr(getattr(self, section), name)}")
