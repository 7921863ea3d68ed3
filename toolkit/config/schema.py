"""The one source of defaults, YAML keys and command-line options: small dataclasses, a line of why each field.

Every field is reachable on the command line by its dotted name (``--optim.lr 0.001``) and in YAML by the same
path. The defaults are the reference recipe: ResNet50, frozen stem, three-layer head, BCE, Adam. The type of an option
says which values it may have (values.py); config/validation.py holds options to it, and to one another.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from shards.options import option
from shards.values import (
    Count,
    FromZeroToOne,
    NotNegative,
    OverZeroToOne,
    Positive,
    UnderOne,
    at_least,
    between,
    or_more,
)
from toolkit.config import values
from toolkit.config.losses import LOSSES
from toolkit.config.registry import Augmentation

#: Where crop and resize run.
Geometry = Literal["auto", "device", "cpu"]
#: What an undecodable image does to a run.
OnError = Literal["replace", "mask", "stop"]
#: What a loss or gradient that is not finite does to a run.
OnNonfinite = Literal["stop", "skip"]


@dataclass
class DataConfig:
    """How posters become batches."""

    image_size: values.Side = 224
    """Side of the square input in pixels; 0 takes the backbone's own, which is 224 for most ImageNet weights."""
    train_crop: Literal["random", "none"] = "random"
    """random: training sees a part of the poster, drawn anew each epoch; none: what evaluation sees (fit, crop_pct)."""
    crop_scale: values.AreaRange = (0.35, 1.0)
    """Smallest and largest share of a poster's area that a training crop takes (torchvision's RandomResizedCrop)."""
    crop_ratio: values.RatioRange = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio (width / height) of a training crop before it is resized to a square."""
    flip: values.Probability = 0.5
    """Probability of a horizontal flip; titles are unreadable either way once posters are cleaned."""
    crop_pct: Annotated[float, between(values.LEAST_CROP_PCT, 1)] = 1.0
    """Evaluation takes the central square of this share of the short side; 1.0 sees most of a poster."""
    fit: Literal["crop", "stretch"] = "crop"
    """Evaluation view: crop takes the central square; stretch resizes the whole poster to a square, losing nothing."""
    sampling: Literal["uniform", "genre"] = "uniform"
    """uniform: every sample once per epoch; genre: rare genres more often; with loss weighted, that corrects twice."""
    repeat_below: OverZeroToOne = 0.1
    """Sampling genre repeats samples whose rarest genre has prevalence f under this value t: sqrt(t / f) times."""
    workers: Annotated[int, between(0, 1024, "0 (automatic) or at most 1024")] = 0
    """Decoding threads per process; 0 divides the cores of the machine by its processes, at most 6 each on GPUs."""
    prefetch: Annotated[int, between(1, 10_000, "from 1 to 10000")] = 4
    """Batches decoded ahead of the step that needs them; more only costs memory."""
    geometry: Geometry = "auto"
    """Where crops are cut and resized: on the device, or on the cpu by the decoding threads; auto is device on GPUs."""
    order: Literal["global", "window"] = "global"
    """Shuffle: global permutes all samples; window only within groups of shards, for sets that do not fit in memory."""
    window: Count = 16
    """Shards in a group of order window; a node then reads from about this many files at a time."""
    on_error: OnError = "replace"
    """An undecodable image is replaced by another sample, masked (weighs nothing), or stops the run."""
    max_errors: values.Part = 0.01
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
    head: values.HeadKind = "mlp"
    """mlp: hidden layers; linear: one layer, as plain timm's; levels: on two stages; ensemble: several mlps on them."""
    hidden: values.Widths = (1024, 512)
    """Widths of the hidden layers of an mlp, or of each mlp of an ensemble."""
    members: Annotated[int, between(1, values.MAX_MEMBERS)] = 8
    """Mlps of an ensemble: each sample trains one of them, their mean is the model."""
    prior: bool = False
    """Start the last layer's biases at the log-odds of each genre's share in training, repeats not counted; else 0."""
    dropout: UnderOne = 0.5
    """Dropout before the last layer, in an mlp after each hidden layer, in an ensemble before each layer."""
    drop_path: UnderOne = 0.0
    """Stochastic depth: share of residual branches left out in training, rising to this rate at the last block."""
    freeze: values.Modules = ("stem",)
    """Modules kept as they are: 'stem', 'backbone' (all but the head) or module names; NAME@3: for 3 epochs only."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""


@dataclass
class AugmentConfig:
    """What training does to pixels after the crop: batched on the device, a function of (seed, epoch, sample)."""

    brightness: FromZeroToOne = 0.0
    """Factor drawn from 1 - x to 1 + x (torchvision's ColorJitter); contrast, saturation likewise."""
    contrast: FromZeroToOne = 0.0
    """Range of the contrast factor."""
    saturation: FromZeroToOne = 0.0
    """Range of the saturation factor."""
    randaugment: Annotated[int, or_more("none")] = 0
    """Operations of RandAugment per sample; 0 none."""
    magnitude: Annotated[float, between(0, 30)] = 9.0
    """Strength of RandAugment's operations, 0 to 30 as in torchvision."""
    erase: values.Probability = 0.0
    """Probability that a rectangle of a sample is filled with noise (random erasing)."""
    mixup: values.Alpha = 0.0
    """Alpha of mixup's Beta distribution; 0 does not mix. Targets are mixed like the pixels."""
    cutmix: values.Alpha = 0.0
    """Alpha of cutmix's Beta distribution; with both, half of the pairs get either."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed; the plan must then deal in pairs."""
        return self.mixup > 0 or self.cutmix > 0


#: Applied in this order, before mixing, which changes targets too. To add one: its options above and in
#: configs/poster_resnet50.yaml, a row here, its function in toolkit/data/augment, its Stream in sampling/rng.py.
AUGMENTATIONS = (
    Augmentation(
        lambda config: max(config.brightness, config.contrast, config.saturation) > 0,
        "toolkit.data.augment.color_jitter:jitter",
    ),
    Augmentation(lambda config: config.randaugment > 0, "toolkit.data.augment.rand_augment:rand_augment"),
    Augmentation(lambda config: config.erase > 0, "toolkit.data.augment.random_erasing:erase"),
)


@dataclass
class LossConfig:
    """What is minimised, always in float32: sum over genres, mean over samples.

    Losses weighted and balanced, like model.prior, know the training split's own counts, not how often data.sampling
    genre repeats a sample. weighted then lifts rare genres twice. balanced is meant for such sampling: its authors draw
    evenly by genre, and its weights take back what common genres gain where a rare one brings them along.
    """

    name: str = "bce"
    """The loss, by its name in the registry; `posters train --help` lists all, and the options of each."""
    smoothing: UnderOne = 0.0
    """Label smoothing: targets move this share of the way to 0.5."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the loss of that name, such as gamma_neg of asl; the others have their defaults."""

    def __post_init__(self) -> None:
        if self.name in LOSSES and self.options is not None:
            self.options = {**asdict(LOSSES[self.name].options()), **self.options}


@dataclass
class OptimConfig:
    """How weights move."""

    name: str = "adam"
    """Any optimiser of timm (timm.optim.list_optimizers()): adam, adamw, sgd, lamb, ...; the reference uses Adam."""
    lr: Positive = 0.0015
    """Peak learning rate, for the global batch."""
    weight_decay: NotNegative = 0.0
    """Decay per update; not applied to biases and normalisation (vectors)."""
    momentum: UnderOne = 0.9
    """Momentum of SGD; the others ignore it."""
    layer_decay: OverZeroToOne = 1.0
    """Factor on the learning rate per layer, from the head down: 0.75 suits fine-tuning transformers; 1 none."""
    head_lr: Positive = 1.0
    """Factor on the learning rate of the head: a new head may learn faster than a trained backbone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after warm-up, stepped once per update whatever the number of processes."""
    warmup_steps: Annotated[int, at_least(0, "0 or more")] = 0
    """Updates over which the learning rate rises linearly from zero."""
    min_lr: values.Part = 0.0
    """Share of the peak rate at which cosine ends."""
    clip_norm: Annotated[float, or_more("no clipping")] = 0.0
    """Largest norm of the gradient, which is of a loss summed over genres; 0 does not clip."""


@dataclass
class TrainConfig:
    """How long, how large, how exact."""

    epochs: Count = 30
    """Upper bound; early stopping usually ends sooner."""
    batch_size: Annotated[int, between(1, 2**31, "from 1 to 2147483648")] = 64
    """Global batch: most samples of an update, over all processes and accumulation steps together."""
    accumulation: Count = 1
    """Parts into which each process cuts its share of a global batch, to save memory; the update stays the same."""
    eval_batch_size: Annotated[int, or_more("what suits the device")] = 0
    """Samples per forward pass in evaluation, per process; 0 is what suits the device: 32 on a CPU, 128 on a GPU."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto takes what `accelerate launch` was told."""
    seed: Annotated[int, between(0, 2**32 - 1, "from 0 to 4294967295")] = 0
    """Seed of initialisation, order, augmentation and dropout."""
    monitor: Literal["loss", "mAP", "macro_f1"] = "loss"
    """Validation figure that picks the best epoch: plain BCE (whatever is trained on), mAP or cross-fit macro_f1."""
    patience: Annotated[int, or_more("never")] = 5
    """Epochs without a better validation figure before training stops; 0 never stops early."""
    ema: UnderOne = 0.0
    """Decay of the moving average of the weights, which is then what is validated and saved; 0 keeps none."""
    auto_batch: bool = False
    """Raise accumulation at the start until a step fits the memory; the global batch stays the same."""
    feature_views: Annotated[int, or_more("no cache")] = 0
    """With a frozen backbone: views to cache and train on; in memory, 90,000 x 3,072 features x 4 views are 2.2 GB."""
    feature_cache: values.Folder = None
    """Folder of cached features, which runs with the same backbone, shards and views share; null is OUT/features."""
    standardize: bool = False
    """Bring cached features to mean 0 and deviation 1 before the head; folded into its first layer when saved."""
    fsdp: bool = False
    """Spread weights, gradients and the optimiser's state over the processes, for a model that does not fit one GPU."""
    sync_batchnorm: bool = False
    """Statistics of BatchNorm over the rows of all GPUs, not of each: for fewer than some 32 rows a GPU."""
    compile: bool = False
    """torch.compile the model; needs a working compiler at run time."""
    on_nonfinite: OnNonfinite = "stop"
    """A loss or gradient that is not finite stops the run, or its update is skipped, which waits for each update."""
    checkpoint_steps: Annotated[int, or_more("per epoch only")] = 0
    """Save a checkpoint every so many updates, besides one per epoch; 0 only per epoch."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; two survive a damaged newest one."""
    log_steps: Count = 20
    """Updates between two rows of the log."""
    trackers: dict[str, dict[str, Any]] = field(default_factory=lambda: {"tensorboard": {}})
    """Where figures go besides the CSV logs, by name, each with its options; one that is not installed is idle."""


@dataclass
class DecideConfig:
    """How probabilities become decisions: chosen on validation, saved in labels.json, used by predict."""

    thresholds: Literal["auto", "global", "genre"] = "auto"
    """One for all genres (global) or one per genre; auto: per genre where held-out parts of validation gain clearly."""
    aim: values.Aim = "f1"
    """What thresholds aim at: f1, f0.5, precision>=0.6, recall>=0.8 (any number)."""
    calibration: Literal["auto", "none", "temperature", "platt"] = "auto"
    """Makes probabilities mean what they say; auto takes what helps clearly on held-out parts of validation, if any."""
    max_micro_f_loss: UnderOne = option(0.01, old=("--slack",))
    """Largest share of micro-F that thresholds per genre may lose to gain macro-F, for aims f1 and f0.5; 0: none."""


@dataclass
class Config:
    """Everything that decides a run, apart from the folders it reads and writes."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
