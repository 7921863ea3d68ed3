"""The one source of defaults, YAML keys and command-line options: small dataclasses, a line of why each field.

Every field is reachable on the command line by its dotted name (``--optim.lr 0.001``) and in YAML by the same
path. The defaults are the reference recipe: ResNet50, frozen stem, three-layer head, BCE, Adam. config/validation.py
refuses values that no run could use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: Where crop and resize run.
Geometry = Literal["auto", "device", "cpu"]
#: What an undecodable image does to a run.
OnError = Literal["replace", "mask", "stop"]
#: What a loss or gradient that is not finite does to a run.
OnNonfinite = Literal["stop", "skip"]

#: Bounds that keep allocations sane, for what users ask for and for what a model folder says: the side of the input,
#: the side of an image before its centre is cut out, its share, the layers, widths and members of a head.
MAX_SIDE, MAX_RESIZED, LEAST_CROP_PCT = 4096, 16384, 0.1
MAX_HIDDEN, MAX_WIDTH, MAX_MEMBERS = 64, 65536, 1024


@dataclass
class DataConfig:
    """How posters become batches."""

    image_size: int = 224
    """Side of the square input in pixels; 0 takes the backbone's own, which is 224 for most ImageNet weights."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Smallest and largest share of a poster's area that a training crop takes (torchvision's RandomResizedCrop)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio (width / height) of a training crop before it is resized to a square."""
    flip: float = 0.5
    """Probability of a horizontal flip; titles are unreadable either way once posters are cleaned."""
    crop_pct: float = 1.0
    """Evaluation takes the central square of this share of the short side; 1.0 sees most of a poster."""
    fit: Literal["crop", "stretch"] = "crop"
    """Evaluation view: crop takes the central square; stretch resizes the whole poster to a square, losing nothing."""
    sampling: Literal["uniform", "genre"] = "uniform"
    """uniform: every sample once per epoch; genre: rare genres more often; with loss weighted, that corrects twice."""
    repeat_below: float = 0.1
    """Sampling genre repeats samples whose rarest genre has prevalence f under this value t: sqrt(t / f) times."""
    workers: int = 0
    """Decoding threads per process; 0 divides the cores of the machine by its processes, at most 6 each on GPUs."""
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
    head: Literal["mlp", "linear", "levels", "ensemble"] = "mlp"
    """mlp: hidden layers; linear: one layer, as plain timm's; levels: on two stages; ensemble: several mlps on them."""
    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the hidden layers of an mlp, or of each mlp of an ensemble."""
    members: int = 8
    """Mlps of an ensemble: each sample trains one of them, their mean is the model."""
    prior: bool = False
    """Start the last layer's biases at the log-odds of each genre's share in training, repeats not counted; else 0."""
    dropout: float = 0.5
    """Dropout before the last layer, in an mlp after each hidden layer, in an ensemble before each layer."""
    drop_path: float = 0.0
    """Stochastic depth: share of residual branches left out in training, rising to this rate at the last block."""
    freeze: tuple[str, ...] = ("stem",)
    """Modules kept as they are: 'stem', 'backbone' (all but the head) or module names; NAME@3: for 3 epochs only."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""


@dataclass
class AugmentConfig:
    """What training does to pixels after the crop: batched on the device, a function of (seed, epoch, sample)."""

    brightness: float = 0.0
    """Factor drawn from 1 - x to 1 + x (torchvision's ColorJitter); contrast, saturation likewise."""
    contrast: float = 0.0
    """Range of the contrast factor."""
    saturation: float = 0.0
    """Range of the saturation factor."""
    randaugment: int = 0
    """Operations of RandAugment per sample; 0 none."""
    magnitude: float = 9.0
    """Strength of RandAugment's operations, 0 to 30 as in torchvision."""
    erase: float = 0.0
    """Probability that a rectangle of a sample is filled with noise (random erasing)."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest share of the area that is erased."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0 does not mix. Targets are mixed like the pixels."""
    cutmix: float = 0.0
    """Alpha of cutmix's Beta distribution; with both, half of the pairs get either."""
    mix_prob: float = 1.0
    """Probability that a pair of samples is mixed."""


@dataclass
class LossConfig:
    """What is minimised, always in float32: sum over genres, mean over samples.

    Losses weighted and balanced, like model.prior, know the training split's own counts, not how often data.sampling
    genre repeats a sample. weighted then lifts rare genres twice. balanced is meant for such sampling: its authors draw
    evenly by genre, and its weights take back what common genres gain where a rare one brings them along.
    """

    name: Literal["bce", "weighted", "focal", "asl", "balanced"] = "bce"
    """bce; weighted: bce with positives weighted up; focal; asl: asymmetric; balanced: distribution-balanced."""
    smoothing: float = 0.0
    """Label smoothing: targets move this share of the way to 0.5."""
    pos_weight_cap: float = 20.0
    """Largest weight of a positive in loss weighted; uncapped: the split's negatives / positives, in the hundreds."""
    focal_gamma: float = 2.0
    """Focal: exponent that quietens easy elements."""
    gamma_pos: float = 0.0
    """Asymmetric: exponent for positives."""
    gamma_neg: float = 4.0
    """Asymmetric: exponent for negatives; more than gamma_pos lets the few positives be heard."""
    clip: float = 0.05
    """Asymmetric: negatives under this probability cost nothing."""


@dataclass
class OptimConfig:
    """How weights move."""

    name: str = "adam"
    """Any optimiser of timm (timm.optim.list_optimizers()): adam, adamw, sgd, lamb, ...; the reference uses Adam."""
    lr: float = 0.0015
    """Peak learning rate, for the global batch."""
    weight_decay: float = 0.0
    """Decay per update; not applied to biases and normalisation (vectors)."""
    momentum: float = 0.9
    """Momentum of SGD; the others ignore it."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer, from the head down: 0.75 suits fine-tuning transformers; 1 none."""
    head_lr: float = 1.0
    """Factor on the learning rate of the head: a new head may learn faster than a trained backbone."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after warm-up, stepped once per update whatever the number of processes."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly from zero."""
    min_lr: float = 0.0
    """Share of the peak rate at which cosine ends."""
    clip_norm: float = 0.0
    """Largest norm of the gradient, which is of a loss summed over genres; 0 does not clip."""


@dataclass
class TrainConfig:
    """How long, how large, how exact."""

    epochs: int = 30
    """Upper bound; early stopping usually ends sooner."""
    batch_size: int = 64
    """Global batch: most samples of an update, over all processes and accumulation steps together."""
    accumulation: int = 1
    """Parts into which each process cuts its share of a global batch, to save memory; the update stays the same."""
    eval_batch_size: int = 0
    """Samples per forward pass in evaluation, per process; 0 is what suits the device: 32 on a CPU, 128 on a GPU."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto takes what `accelerate launch` was told."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and dropout."""
    monitor: Literal["loss", "mAP", "macro_f1"] = "loss"
    """Validation figure that picks the best epoch: plain BCE (whatever is trained on), mAP or cross-fit macro_f1."""
    patience: int = 5
    """Epochs without a better validation figure before training stops; 0 never stops early."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what is validated and saved; 0 keeps none."""
    auto_batch: bool = False
    """Raise accumulation at the start until a step fits the memory; the global batch stays the same."""
    feature_views: int = 0
    """With a frozen backbone: views to cache and train on; in memory, 90,000 x 3,072 features x 4 views are 2.2 GB."""
    feature_cache: str | None = None
    """Folder of cached features, which runs with the same backbone, shards and views share; null is OUT/features."""
    standardize: bool = False
    """Bring cached features to mean 0 and deviation 1 before the head; folded into its first layer when saved."""
    fsdp: bool = False
    """Spread weights, gradients and the optimiser's state over the processes, for a model that does not fit one GPU."""
    sync_batchnorm: bool = False
    """Statistics of BatchNorm over the rows of all GPUs, not of each: for fewer than some 32 rows a GPU."""
    channels_last: bool = True
    """Memory layout of images and weights; faster for convolutions on GPUs and CPUs."""
    compile: bool = False
    """torch.compile the model; needs a working compiler at run time."""
    on_nonfinite: OnNonfinite = "stop"
    """A loss or gradient that is not finite stops the run, or its update is skipped, which waits for each update."""
    max_skipped: int = 10
    """Updates of an epoch that may be skipped (fp16's overflows apart) before the run stops and lists their samples."""
    checkpoint_steps: int = 0
    """Save a checkpoint every so many updates, besides one per epoch; 0 only per epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; two survive a damaged newest one."""
    log_steps: int = 20
    """Updates between two rows of the log."""
    tensorboard: bool = True
    """Write TensorBoard events beside the CSV log, where tensorboard is installed."""


@dataclass
class DecideConfig:
    """How probabilities become decisions: chosen on validation, saved in labels.json, used by predict."""

    thresholds: Literal["auto", "global", "genre"] = "auto"
    """One for all genres (global) or one per genre; auto: per genre where held-out parts of validation gain clearly."""
    aim: str = "f1"
    """What thresholds aim at: f1, f0.5, precision>=0.6, recall>=0.8 (any number)."""
    calibration: Literal["auto", "none", "temperature", "platt"] = "auto"
    """Makes probabilities mean what they say; auto takes what helps clearly on held-out parts of validation, if any."""
    slack: float = 0.01
    """Aims f1, f0.5, per genre: share of one threshold's micro-F to spend on macro-F (auto: if it helps); 0: none."""


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
