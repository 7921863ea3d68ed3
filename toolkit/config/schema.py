"""The only definition of defaults, YAML keys and command-line options of a training run, as dataclasses.

Every field is an option of its dotted name (``--optim.lr 0.001``), and a YAML key of the same path. The defaults are
the reference recipe: ResNet50, frozen stem, three-layer head, BCE, Adam. The type of a field defines the allowed values
(values.py); config/validation.py checks values and combinations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from shards.options import option
from shards.values import Count, NotNegative, OverZeroToOne, Positive, UnderOne, at_least, between, or_more
from toolkit.config import values
from toolkit.config.augmentations import AugmentConfig
from toolkit.config.losses import LOSSES

#: The device on which crop and resize run.
Geometry = Literal["auto", "device", "cpu"]
#: How a run handles an image that cannot be decoded.
OnError = Literal["replace", "mask", "stop"]
#: How a run handles a loss or gradient that is not finite.
OnNonfinite = Literal["stop", "skip"]


@dataclass
class DataConfig:
    """Reading, cropping and sampling of images."""

    image_size: values.Side = 224
    """Side of the square input in pixels; 0: the input size of the backbone, which is 224 for most ImageNet weights."""
    train_crop: Literal["random", "none"] = "random"
    """random: a new random crop of each poster in each epoch; none: the evaluation view (fit, crop_pct)."""
    crop_scale: values.AreaRange = (0.35, 1.0)
    """Smallest and largest share of a poster's area that a random crop covers (torchvision's RandomResizedCrop)."""
    crop_ratio: values.RatioRange = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio (width / height) of a random crop before it is resized to a square."""
    flip: values.Probability = 0.5
    """Probability of a horizontal flip; it does no harm to titles that have been removed from the posters."""
    crop_pct: Annotated[float, between(values.LEAST_CROP_PCT, 1)] = 1.0
    """Evaluation crop: side of the central square as a share of the short side; 1.0 is the largest square."""
    fit: Literal["crop", "stretch"] = "crop"
    """Evaluation view: crop uses the central square; stretch resizes the whole poster to a square."""
    sampling: Literal["uniform", "genre"] = "uniform"
    """uniform: every sample once per epoch; genre: rare genres more often (do not combine with loss weighted)."""
    repeat_below: OverZeroToOne = 0.1
    """Sampling genre: a sample whose rarest genre has a prevalence f below this value t is used sqrt(t / f) times."""
    workers: Annotated[int, between(0, 1024, "0 (automatic) or at most 1024")] = 0
    """Decoding threads per process; 0: the cores of the machine divided by its processes, at most 6 for a GPU."""
    prefetch: Annotated[int, between(1, 10_000, "from 1 to 10000")] = 4
    """Number of batches that are decoded in advance; each takes memory."""
    geometry: Geometry = "auto"
    """Crop and resize on the device, or on the cpu in the decoding threads; auto: the device if it is a GPU."""
    order: Literal["global", "window"] = "global"
    """Shuffle all samples (global), or only within groups of shards (window), for sets larger than the memory."""
    window: Count = 16
    """Number of shards in a group of order window; a node then reads from about as many files at a time."""
    on_error: OnError = "replace"
    """Image that cannot be decoded: replace it by another sample, mask it (weight 0), or stop the run."""
    max_errors: values.Part = 0.01
    """Largest share of a split's samples that cannot be decoded; above it the run stops and lists them."""


@dataclass
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """Any timm architecture, with or without a pretrained tag (timm.list_models())."""
    pretrained: bool = True
    """Start from timm's pretrained weights on the hub; random weights need far more posters."""
    weights: str | None = None
    """A local weights file (.safetensors, or .pth loaded with weights_only) instead of weights from the hub."""
    head: values.HeadKind = "mlp"
    """mlp: hidden layers; linear: one layer; levels: one layer on two stages; ensemble: several mlps on two stages."""
    hidden: values.Widths = (1024, 512)
    """Widths of the hidden layers of an mlp, or of each mlp of an ensemble."""
    members: Annotated[int, between(1, values.MAX_MEMBERS)] = 8
    """Number of mlps in an ensemble: each sample trains one of them; the output is their mean."""
    prior: bool = False
    """Initialise the biases of the last layer with the log-odds of each genre's prevalence in training, not with 0."""
    dropout: UnderOne = 0.5
    """Dropout rate before the last layer; in an mlp after each hidden layer, in an ensemble before each layer."""
    drop_path: UnderOne = 0.0
    """Stochastic depth: rate of dropped residual branches at the last block; it rises linearly from 0."""
    freeze: values.Modules = ("stem",)
    """Frozen modules: 'stem', 'backbone' (all except the head) or module names; NAME@3: frozen for 3 epochs."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class LossConfig:
    """The loss, in float32: the sum over genres, then the mean over samples.

    Losses weighted and balanced, like model.prior, use the counts of the training split without the repeats of
    data.sampling genre. Loss weighted with this sampling therefore raises the weight of rare genres twice. Loss
    balanced is made for such sampling: its weights correct for common genres that are repeated with a rare one.
    """

    name: str = "bce"
    """Name of the loss; `posters train --help` lists all losses and their options."""
    smoothing: UnderOne = 0.0
    """Label smoothing s: a target y becomes y + s * (0.5 - y)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the chosen loss, for example gamma_neg of asl; missing ones have their defaults."""

    def __post_init__(self) -> None:
        if self.name in LOSSES and self.options is not None:
            self.options = {**asdict(LOSSES[self.name].options()), **self.options}


@dataclass
class OptimConfig:
    """Optimiser and learning rate."""

    name: str = "adam"
    """Any optimiser of timm (timm.optim.list_optimizers()): adam, adamw, sgd, lamb, ...; the reference uses Adam."""
    lr: Positive = 0.0015
    """Peak learning rate, for the global batch."""
    weight_decay: NotNegative = 0.0
    """Weight decay; not applied to biases and normalisation layers (vectors)."""
    momentum: UnderOne = 0.9
    """Momentum of SGD; other optimisers ignore it."""
    layer_decay: OverZeroToOne = 1.0
    """Factor on the learning rate per layer below the head, for example 0.75 for a transformer; 1: no decay."""
    head_lr: Positive = 1.0
    """Factor on the learning rate of the head; a new head may need a higher rate than a pretrained backbone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate after warm-up, one step per update for any number of processes."""
    warmup_steps: Annotated[int, at_least(0, "0 or more")] = 0
    """Number of updates in which the learning rate rises linearly from zero."""
    min_lr: values.Part = 0.0
    """Final learning rate of the cosine schedule, as a share of the peak learning rate."""
    clip_norm: Annotated[float, or_more("no clipping")] = 0.0
    """Largest norm of the gradient (of the loss summed over genres); 0: no clipping."""


@dataclass
class TrainConfig:
    """Length, batch size, precision and checkpoints of a run."""

    epochs: Count = 30
    """Largest number of epochs; early stopping usually ends a run sooner."""
    batch_size: Annotated[int, between(1, 2**31, "from 1 to 2147483648")] = 64
    """Global batch: largest number of samples in an update, over all processes and accumulation steps."""
    accumulation: Count = 1
    """Micro-batches per process and update: more need less memory; the update stays the same."""
    eval_batch_size: Annotated[int, or_more("what suits the device")] = 0
    """Samples per forward pass in evaluation, per process; 0: 32 on a CPU, 128 on a GPU."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto: the setting of `accelerate launch`."""
    seed: Annotated[int, between(0, 2**32 - 1, "from 0 to 4294967295")] = 0
    """Seed of initialisation, sample order, augmentation and dropout."""
    monitor: Literal["loss", "mAP", "macro_f1"] = "loss"
    """Validation metric that selects the best epoch: loss (always plain BCE), mAP, or macro_f1 (cross-fitted)."""
    patience: Annotated[int, or_more("never")] = 5
    """Epochs without a better validation metric before training stops; 0: no early stopping."""
    ema: UnderOne = 0.0
    """Decay of the moving average of the weights, which is then validated and saved; 0: no average."""
    auto_batch: bool = False
    """Increase accumulation at the start until an update fits the memory; the global batch stays the same."""
    feature_views: Annotated[int, or_more("no cache")] = 0
    """With a frozen backbone: cached views per image to train on; 90,000 x 3,072 features x 4 views need 2.2 GB."""
    feature_cache: values.Folder = None
    """Folder of cached features, shared by runs with the same backbone, shards and views; null: OUT/features."""
    standardize: bool = False
    """Scale cached features to mean 0 and deviation 1; the saved model has this scaling in its first head layer."""
    fsdp: bool = False
    """Shard weights, gradients and optimiser state over the processes, for a model that does not fit on one GPU."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over the samples of all GPUs; useful with fewer than about 32 samples per GPU."""
    compile: bool = False
    """Use torch.compile; it needs a working compiler at run time."""
    on_nonfinite: OnNonfinite = "stop"
    """Loss or gradient that is not finite: stop the run, or skip the update (skip adds a wait to every update)."""
    checkpoint_steps: Annotated[int, or_more("per epoch only")] = 0
    """Number of updates between checkpoints, besides one per epoch; 0: only one per epoch."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep; with two, a run can resume even if the newest one is damaged."""
    log_steps: Count = 20
    """Number of updates between two rows of the log."""
    trackers: dict[str, dict[str, Any]] = field(default_factory=lambda: {"tensorboard": {}})
    """Trackers for metrics besides the CSV logs: name → its options; a tracker that is not installed is disabled."""


@dataclass
class DecideConfig:
    """Calibration and thresholds: chosen on validation, saved in labels.json, used by predict."""

    thresholds: Literal["auto", "global", "genre"] = "auto"
    """global: one for all genres; genre: one per genre; auto: one per genre if clearly better on held-out samples."""
    aim: values.Aim = "f1"
    """Objective of the thresholds: f1, f0.5, or a level such as precision>=0.6 or recall>=0.8."""
    calibration: Literal["auto", "none", "temperature", "platt"] = "auto"
    """Calibration of the probabilities; auto: the best method that clearly helps on held-out samples, or none."""
    max_micro_f_loss: UnderOne = option(0.01, old=("--slack",))
    """Largest relative loss of micro-F that thresholds per genre may cost, for aims f1 and f0.5; 0: no loss."""


@dataclass
class Config:
    """All settings of a run except its input and output folders."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
