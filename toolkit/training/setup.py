"""Build the parts of a training run. Weights are new, or come from a file, the hub or a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.config.schema import Config, TrainConfig
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.distributed.collectives import require_same_everywhere
from toolkit.distributed.fsdp import is_sharded, shard_model, shard_state, uses_fsdp
from toolkit.models.activation_checkpointing import enable_checkpointing
from toolkit.models.ema import build_ema
from toolkit.models.factory import build_model, other_size
from toolkit.models.freezing import Freezing, check_random
from toolkit.models.heads import HeadSpec, set_prior
from toolkit.models.wrapping import check_synced, wrap
from toolkit.training.batches import Pixels, train_plan
from toolkit.training.cached.feature_cache import FeatureBank, backbone_hash
from toolkit.training.cached.probe import Probe
from toolkit.training.checkpoints.checkpoint import Checkpoint, restoring
from toolkit.training.checkpoints.weights import load_folder, load_weights
from toolkit.training.losses import build_loss
from toolkit.training.nonfinite import restore_scaler
from toolkit.training.optim import build_optimizer, restore_optimizer

log = logging.getLogger(__name__)

#: Memory layout of weights. It makes convolutions faster, on GPUs and CPUs.
LAYOUT = torch.channels_last


@dataclass
class TrainingSetup:
    """All parts of a training run."""

    accelerator: Accelerator
    config: Config
    manifest: Manifest
    train: ShardReader
    val: ShardReader
    plan: TrainPlan
    accumulation: int
    """Number of micro-batches per process and update: as configured, or as chosen by auto_batch.py."""
    model: nn.Module
    """The module that is trained, on its device. With several processes it is wrapped in DDP, or sharded (fsdp.py)."""
    optimizer: Any
    freezing: Freezing
    criterion: nn.Module
    """The loss: (n, G) logits and targets → (n,) float32 losses, summed over genres."""
    ema: ModelEmaV3 | None
    preprocessing: Preprocessing
    out: Path
    inputs: Pixels | Probe
    """Input of the trained module: pixels or cached features."""

    @property
    def fsdp(self) -> bool:
        """Whether model, optimiser and moving average contain only this process's part of each tensor."""
        return is_sharded(self.model)


def build_setup(
    accelerator: Accelerator,
    config: Config,
    manifest: Manifest,
    readers: Sequence[ShardReader],
    out: Path,
    checkpoint: Checkpoint | None,
) -> TrainingSetup:
    """Build all parts of a run except its loaders. ``readers`` read the splits train and val. Called on every rank."""
    train, val = readers
    fsdp, over_processes = uses_fsdp(accelerator, config), check_synced(accelerator, config)
    set_seed(config.train.seed)  # for the initial weights of the head; each update sets its own seed
    cached = config.train.feature_views > 0
    # With cached features a checkpoint contains only the head, so a resume loads the backbone's weights again.
    model, learnt = _model(
        accelerator, config, manifest.labels, train.positives / len(train), checkpoint is None or cached
    )
    if checkpoint is None and not config.model.pretrained and config.model.weights is None:
        warning = check_random(model, config.model.freeze)
        if warning and accelerator.is_main_process:
            log.warning("%s", warning)
    data = config.data
    cfg: Any = model.pretrained_cfg
    preprocessing = Preprocessing(data.image_size, data.crop_pct, tuple(cfg["mean"]), tuple(cfg["std"]), data.fit)
    inputs: Pixels | Probe
    if cached:
        folder = Path(config.train.feature_cache or out / "features")
        bank = FeatureBank(accelerator, model, config, preprocessing, folder, manifest.fingerprint)
        inputs = Probe.of(bank, train, val, config, learnt)
    else:
        inputs = Pixels(config, model, preprocessing, accelerator)
    model, ema = _restored(inputs.trained, config.train, checkpoint)
    if over_processes:
        # The moving average is not converted. torch's own function loses the activations inside timm's layers.
        model = convert_sync_batchnorm(model)
    if fsdp:
        shard_model(accelerator, model)
        if ema is not None:
            shard_model(accelerator, ema.module)
            ema.foreach = False  # torch's foreach functions reject a mix of sharded and whole tensors
    if config.model.checkpointing:
        enable_checkpointing(model)
    freezing = Freezing(model, inputs.frozen)  # created here, because the steps above replace parameters
    model, optimizer = _optimised(accelerator, config, model, freezing, checkpoint)
    if ema is not None and not fsdp:
        ema.to(accelerator.device)
    criterion = build_loss(config.loss, train.positives, len(train)).to(accelerator.device)
    plan = train_plan(config, train, checkpoint.progress.sizes if checkpoint else "even")
    return TrainingSetup(
        accelerator, config, manifest, train, val, plan, config.train.accumulation, model, optimizer, freezing,
        criterion, ema, preprocessing, out, inputs,
    )  # fmt: skip


def _restored(
    model: nn.Module, config: TrainConfig, checkpoint: Checkpoint | None
) -> tuple[nn.Module, ModelEmaV3 | None]:
    """Load the checkpoint's weights, if any. Return ``model`` and its moving average (None if train.ema is 0)."""
    if checkpoint is not None:
        with restoring(checkpoint):
            model.load_state_dict(checkpoint.tensors["model"])
    model = model.to(memory_format=LAYOUT)
    ema = build_ema(model, config.ema)
    if ema is not None and checkpoint is not None:
        with restoring(checkpoint):
            ema.module.load_state_dict(checkpoint.tensors["ema"])
    return model, ema


def _optimised(
    accelerator: Accelerator, config: Config, model: nn.Module, freezing: Freezing, checkpoint: Checkpoint | None
) -> tuple[nn.Module, Any]:
    """Return the model and its optimiser with the checkpoint's state. The model is wrapped if it is not sharded."""
    # The optimiser contains all weights that are ever trained. It skips frozen weights, as they have no gradient.
    freezing.apply(None)
    optimizer: Any = build_optimizer(model, config.optim)
    freezing.apply(checkpoint.progress.epoch if checkpoint else 0)
    # accelerate does not prepare the loader, which shards by rank itself. There is no scheduler to prepare.
    fsdp = is_sharded(model)
    if not fsdp:
        model = wrap(accelerator, model, config.train)
    optimizer = accelerator.prepare_optimizer(optimizer)
    if checkpoint is not None:
        with restoring(checkpoint):
            state = checkpoint.tensors["optimizer"]
            restore_optimizer(optimizer, shard_state(optimizer, state) if fsdp else state)
            if accelerator.scaler is not None and checkpoint.tensors["scaler"]:
                restore_scaler(accelerator.scaler, checkpoint.tensors["scaler"])
    return model, optimizer


def _model(
    accelerator: Accelerator, config: Config, labels: LabelSet, prevalence: np.ndarray, first: bool
) -> tuple[nn.Module, bool]:
    """Return the network, and whether its head is already trained.

    ``first``: whether to load initial weights, from a file, a folder or the hub. ``prevalence`` (G,) is the share
    of training samples with each label. If model.prior is true, the biases of a new head start from ``prevalence``.
    """
    wanted, size, num_genres = config.model, config.data.image_size, len(prevalence)
    hub = first and wanted.pretrained and wanted.weights is None
    with accelerator.main_process_first():  # the others then find the downloaded weights in the cache
        head, scratch = HeadSpec.of(wanted), "backbone" not in wanted.freeze
        model = build_model(
            wanted.name, num_genres, head, size, pretrained=hub, drop_path=wanted.drop_path, scratch=scratch
        )
    cfg: Any = model.pretrained_cfg
    # timm keeps the hub's classifier if it has the requested size.
    learnt = not first or (hub and wanted.head == "linear" and cfg.get("num_classes") == num_genres)
    # The prior is set before weights are loaded, so that a loaded head keeps its own biases.
    if wanted.prior and not learnt:
        set_prior(model, prevalence)
    loaded = None
    if first and wanted.weights is not None:
        path = Path(wanted.weights)
        if path.is_dir():
            loaded, learnt = load_folder(model, config, path, labels)
        else:
            loaded, learnt = load_weights(model, path, labels)
    if accelerator.num_processes > 1 and (hub or loaded):
        # Nodes may have different copies of the weights, and not all runs copy the main process's weights to all ranks.
        require_same_everywhere(accelerator, f"weights of {wanted.name}", backbone_hash(model)[:16])
    if accelerator.is_main_process:
        if loaded:
            log.info("%s", loaded)
        if (wanted.pretrained or wanted.weights is not None) and (warning := other_size(model, size)):
            log.warning("%s", warning)
    return model, learnt
