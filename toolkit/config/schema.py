"""The configuration of a training run as dataclasses: all YAML keys and command-line options with their defaults.

The field ``lr`` of section ``optim`` is the option ``--optim.lr`` and the YAML key ``lr`` below ``optim``. The defaults
are the reference recipe: ResNet50 with frozen first layers, a classifier of three layers, BCE and Adam. The type of a
field defines the allowed values (values.py). config/validation.py checks values and combinations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from shards.options import option
from shards.values import Count, NotNegative, OverZeroToOne, Positive, UnderOne, at_least, between, or_more
from toolkit.config import values
from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.config.loss_registry import LOSSES

#: Where crop and resize run.
Geometry = values.Geometry
#: How a run handles an image that cannot be decoded.
OnError = Literal["replace", "mask", "stop"]
#: How a run handles a loss or gradient that is not finite.
OnNonfinite = Literal["stop", "skip"]


@dataclass
class CropConfig:
    """The part of an image that becomes a sample, and its size."""

    image_size: values.Side = 224
    """Side of the square input in pixels. 0 means the backbone's input size, usually 224 for ImageNet weights."""
    train_crop: Literal["random", "none"] = "random"
    """random: a new random crop of each poster in each epoch. none: the same crop as in evaluation (fit, crop_pct)."""
    crop_scale: values.AreaRange = (0.35, 1.0)
    """Smallest and largest share of a poster's area that a random crop covers (torchvision's RandomResizedCrop)."""
    crop_ratio: values.RatioRange = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio (width / height) of a random crop before it is resized to a square."""
    flip: values.Probability = 0.5
    """Probability of a horizontal flip. A flip mirrors text, so it suits posters whose text has been removed."""
    crop_pct: values.CropPct = 1.0
    """Side of the central square that evaluation uses (fit crop), as a share of the short side. 1 is the largest."""
    fit: values.Fit = "crop"
    """In evaluation, crop uses the central square of the poster, and stretch resizes the whole poster to a square."""
    geometry: Geometry = "auto"
    """device: crop and resize on the device. cpu: in the decoding threads. auto: on the device if it is a GPU."""


@dataclass
class DataConfig(CropConfig):
    """Reading, cropping and sampling of images."""

    sampling: Literal["uniform", "genre"] = "uniform"
    """uniform: use each sample once per epoch. genre: repeat samples of rare genres (not with the loss "weighted")."""
    repeat_below: OverZeroToOne = 0.1
    """Prevalence t. With sampling genre, a sample whose rarest genre has prevalence f < t is used sqrt(t / f) times."""
    workers: Annotated[int, between(0, 1024, "0 (automatic) or at most 1024")] = 0
    """Decoding threads per process. 0 means cores / processes of the machine, but at most 6 with a GPU."""
    prefetch: Annotated[int, between(1, 10_000, "from 1 to 10000")] = 4
    """Number of batches that are decoded in advance. Each of them needs memory."""
    order: Literal["global", "window"] = "global"
    """global: shuffle all samples. window: shuffle within groups of shards, for sets that do not fit in memory."""
    window: Count = 16
    """Number of shards in a group, for order window. A node reads from about this number of files at a time."""
    on_error: OnError = "replace"
    """For an image that cannot be decoded: replace it by another image, mask it (weight 0), or stop the run."""
    max_errors: values.Share = 0.01
    """If more than this share of a split's samples cannot be decoded, the run stops and lists these samples."""


@dataclass
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """Name of any timm architecture, with or without a pretrained tag. timm.list_models() lists the names."""
    pretrained: bool = True
    """Start from timm's pretrained weights on the hub. A start from random weights needs far more posters."""
    weights: str | None = None
    """Local weights to use instead of the hub's: a file (.safetensors or .pth of tensors), or a run or model folder."""
    head: values.HeadName = "mlp"
    """Classifier: linear (one layer), mlp, levels (linear on two stages), ensemble (mlps on two) or MODULE:CLASS."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """Options of your own classifier."""
    hidden: values.Widths = (1024, 512)
    """Widths of the hidden layers of an mlp, or of each mlp of an ensemble."""
    members: Annotated[int, between(1, values.MAX_MEMBERS)] = 8
    """Number of mlps in an ensemble. Each sample trains one mlp, and the output is the mean of all mlps."""
    prior: bool = False
    """Start the last layer's biases at the log-odds of each genre's prevalence in the training split, not at 0."""
    dropout: UnderOne = 0.5
    """Dropout rate before the last layer, after each hidden layer of an mlp, and before each layer of an ensemble."""
    drop_path: UnderOne = 0.0
    """Stochastic depth: drop rate of the last residual branch. The rate rises linearly from 0 at the first branch."""
    freeze: values.Modules = ("stem",)
    """Frozen modules: stem (first layers), backbone (all but the head) or names. NAME@3 freezes NAME for 3 epochs."""
    adapter: values.Place = None
    """Your own change of the network in training, MODULE:CLASS, such as LoRA. The saved model has no such change."""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Options of your own change of the network."""
    checkpointing: bool = False
    """Recompute activations in the backward pass. This saves memory and takes about a third more time."""


@dataclass
class LossConfig:
    """The loss, which is computed in float32, summed over genres and averaged over samples.

    The losses "weighted" and "balanced" use the genre counts of the training split, without repeats of samples. Do not
    combine "weighted" with data.sampling genre, because both raise the weight of rare genres. "balanced" is made for
    this sampling. Its weights correct for common genres that are repeated together with a rare genre.
    """

    name: str = "bce"
    """Name of the loss, or MODULE:CLASS. `posters train --help` lists all losses and their options."""
    smoothing: UnderOne = 0.0
    """Label smoothing s, which changes a target y to y + s * (0.5 - y)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the chosen loss, for example gamma_neg of asl. Missing options have their default values."""

    def __post_init__(self) -> None:
        if self.name in LOSSES and self.options is not None:
            self.options = {**asdict(LOSSES[self.name].options()), **self.options}


@dataclass
class OptimConfig:
    """Optimiser and learning rate."""

    name: str = "adam"
    """Name of any timm optimiser (timm.optim.list_optimizers()), such as adam, adamw, sgd or lamb, or MODULE:CLASS."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the optimiser, such as betas or eps of adam."""
    lr: Positive = 0.0015
    """Peak learning rate for updates with the global batch train.batch_size."""
    weight_decay: NotNegative = 0.0
    """Weight decay. Biases and the weights of normalisation layers have no decay."""
    momentum: UnderOne = 0.9
    """Momentum of SGD. Other optimisers ignore this option."""
    layer_decay: OverZeroToOne = 1.0
    """Factor on the learning rate for each layer below the head, such as 0.75 for a transformer. 1 means no decay."""
    head_lr: Positive = 1.0
    """Factor on the learning rate of the head. A new head may need a higher rate than a pretrained backbone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate after warm-up. The rate changes after each update."""
    warmup_steps: Annotated[int, at_least(0, "0 or more")] = 0
    """Number of updates in which the learning rate rises linearly from zero."""
    min_lr: values.Share = 0.0
    """Final learning rate of the cosine schedule, as a share of the peak learning rate."""
    clip_norm: Annotated[float, or_more("no clipping")] = 0.0
    """Largest norm of the gradient, for a loss that is summed over genres. 0 switches clipping off."""


@dataclass
class MetricConfig:
    """A metric of your own, which is measured on validation after each epoch."""

    name: values.Place = None
    """Your own metric, MODULE:CLASS."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of your own metric."""


@dataclass
class TrainConfig:
    """Length, batch size, precision and checkpoints of a run."""

    epochs: Count = 30
    """Largest number of epochs. Early stopping usually ends a run sooner."""
    batch_size: Annotated[int, between(1, 2**31, "from 1 to 2147483648")] = 64
    """Global batch: the largest number of samples in an update, over all processes and accumulation steps."""
    accumulation: Count = 1
    """Micro-batches per process and update. A higher number saves memory. The samples of an update do not change."""
    eval_batch_size: Annotated[int, or_more("what suits the device")] = 0
    """Samples per forward pass of evaluation in each process. 0 means 32 on a CPU and 128 on a GPU."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision. auto uses the setting of `accelerate launch`."""
    seed: Annotated[int, between(0, 2**32 - 1, "from 0 to 4294967295")] = 0
    """Seed of initialisation, sample order, augmentation and dropout."""
    monitor: values.Monitor = "loss"
    """Validation metric that selects the best epoch. loss is plain BCE. Set your own metric as metric.name, too."""
    patience: Annotated[int, or_more("never")] = 5
    """Stop training after this number of epochs without a better validation metric. 0 means never."""
    ema: UnderOne = 0.0
    """Decay of the moving average of the weights. The average is validated and saved. 0 means no average."""
    auto_batch: bool = False
    """At the start, increase accumulation until an update fits in memory. The global batch does not change."""
    feature_views: Annotated[int, or_more("no cache")] = 0
    """Number of crops to cache per image (frozen backbone). 90,000 images x 3,072 features x 4 crops need 4.4 GB."""
    feature_cache: values.Folder = None
    """Folder of cached features, which runs with the same backbone and shards can share. null means OUT/features."""
    standardize: bool = False
    """Scale cached features to mean 0 and deviation 1. The first layer of the saved head includes the scaling."""
    fsdp: bool = False
    """Shard weights, gradients and optimiser state over the processes, for a model that does not fit on one GPU."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over the samples of all GPUs. Use this with fewer than about 32 samples per GPU."""
    compile: bool = False
    """Use torch.compile, which needs a working compiler at run time."""
    on_nonfinite: OnNonfinite = "stop"
    """If a loss or gradient is not finite, stop the run or skip the update. skip makes updates slightly slower."""
    checkpoint_steps: Annotated[int, or_more("per epoch only")] = 0
    """Number of updates between extra checkpoints. 0 means none. A checkpoint is always written after each epoch."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep. With two, a run can resume even if the newest checkpoint is damaged."""
    log_steps: Count = 20
    """Number of updates between two rows of log.csv."""
    trackers: values.Trackers = field(default_factory=lambda: {"tensorboard": {}})
    """Name of a tracker → its options, or a list of names: tensorboard, wandb, mlflow, trackio, ... or MODULE:CLASS."""

    def __post_init__(self) -> None:
        if isinstance(self.trackers, str):
            self.trackers = {name.strip(): {} for name in self.trackers.split(",") if name.strip()}
        elif isinstance(self.trackers, (list, tuple)):
            self.trackers = {name: {} for name in self.trackers}


@dataclass
class DecideConfig:
    """Calibration and thresholds. They are chosen on the validation split and saved in labels.json."""

    thresholds: Literal["auto", "global", "genre"] = "auto"
    """global: one threshold for all. genre: one per genre. auto: genre if it is clearly better on held-out samples."""
    aim: values.Aim = "f1"
    """Objective of the thresholds: f1, f0.5, or a level such as precision>=0.6 or recall>=0.8."""
    calibration: Literal["auto", "none", "temperature", "platt"] = "auto"
    """Calibration of the probabilities. auto: the best method that clearly helps on held-out samples, or none."""
    max_micro_f_loss: UnderOne = option(0.01, old=("--slack",))
    """Largest accepted relative loss of micro-F by thresholds per genre, with aim f1 or f0.5. 0 accepts no loss."""


@dataclass
class Config:
    """All settings of a run except its input and output folders."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
