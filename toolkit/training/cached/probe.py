"""Train only a head (classifier) on cached features, in place of a whole model on pixels.

    FeatureBank: feature files ─→ FeatureFeed: batches ─→ Head ─→ merge: the whole model, for saving

Feature files are mapped, so the processes of a node share one copy in memory. A view is one augmentation of all images.
The files need 4 bytes x features x samples x views: 4.4 GB for 90,000 posters, 3,072 features and 4 views.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from toolkit.config.schema import Config, TrainConfig
from toolkit.data.loader.loader import Batch
from toolkit.data.loader.timing import LoaderTimer
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.device.transfer import to_device
from toolkit.models.ensemble import linears, networks
from toolkit.models.heads import HeadSpec, classifier_path
from toolkit.training.cached.feature_cache import FeatureBank
from toolkit.training.cached.feature_files import Features

if TYPE_CHECKING:
    from toolkit.training.setup import TrainingSetup

#: Least standard deviation by which features are divided, so that an almost constant feature is not amplified.
LEAST_DEVIATION = 1e-3
#: Default number of samples that pass through a head at a time.
ROWS = 512


class Head(nn.Module):
    """The classifier of a timm model. It first standardises its input features."""

    def __init__(self, model: nn.Module, mean: torch.Tensor, deviation: torch.Tensor, dropout: float) -> None:
        """Copy the classifier of ``model``, and put ``dropout`` before it.

        Features x become (x - ``mean``) / ``deviation``. ``mean`` and ``deviation`` have shape (F,).
        """
        super().__init__()
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", deviation.float())
        self.dropout = nn.Dropout(dropout)
        self.pretrained_cfg = {"classifier": "classifier"}  # timm's helpers find the head by this entry
        self.classifier = copy.deepcopy(model.get_submodule(classifier_path(model)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, G) of ``features`` (n, F)."""
        return self.classifier(self.dropout((features - self.mean) / self.deviation))


def build_head(
    model: nn.Module, views: Sequence[Features], standardize: bool, dropout: float, trained: bool = False
) -> Head:
    """Return a Head with a copy of the classifier of ``model``. ``views``: training features, one per augmentation.

    standardize: scale features to mean 0 and deviation 1 over the training samples.
    trained: whether the classifier is already trained. If both options are true, the classifier is changed so that
    the scaling of features does not change its logits.
    """
    width = views[0].values.shape[1]
    mean, deviation = torch.zeros(width), torch.ones(width)
    if standardize:
        total, squares, count = np.zeros(width), np.zeros(width), 0
        for view in views:
            for rows in (block.astype(np.float64) for block in view.blocks()):
                total, squares, count = total + rows.sum(0), squares + (rows**2).sum(0), count + len(rows)
        average = total / count
        spread = np.sqrt(np.maximum(squares / count - average**2, 0.0))
        mean, deviation = torch.from_numpy(average), torch.from_numpy(np.maximum(spread, LEAST_DEVIATION))
    head = Head(model, mean, deviation, dropout)
    if trained and standardize:  # undo the standardisation: x = (z - (-m / d)) / (1 / d)
        mean, deviation = head.mean.double(), head.deviation.double()
        _fold(head.classifier, -mean / deviation, 1 / deviation)
    return head


def merge(model: nn.Module, head: Head) -> nn.Module:
    """Return a copy of ``model`` with the trained head. The standardisation is folded into the head's first layers."""
    whole = copy.deepcopy(model)
    name = classifier_path(whole)
    parent, _, attribute = name.rpartition(".")
    classifier = copy.deepcopy(head.classifier)
    _fold(classifier, head.mean, head.deviation)
    setattr(whole.get_submodule(parent), attribute, classifier)
    return whole


def _fold(classifier: nn.Module, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Change the first layers in place, so that they take x as input in place of (x - mean) / deviation."""
    mean, deviation = mean.cpu().double(), deviation.cpu().double()
    with torch.no_grad():
        for first in (linears(network)[0] for network in networks(classifier)):
            # W ((x - m) / d) + b = (W / d) x + (b - (W / d) m), in double precision
            weight = first.weight.cpu().double() / deviation
            bias = first.bias.cpu().double() - weight @ mean
            first.weight.copy_(weight)
            first.bias.copy_(bias)


@dataclass(frozen=True, eq=False)
class Probe:
    """Input of a run, like Pixels (batches.py), but with cached features. Only the head of the model is trained."""

    model: nn.Module
    """The whole model with its initial head."""
    trained: Head
    views: list[Features]
    """Features of the training split, one item per augmentation."""
    val: Features
    frozen: Sequence[str] = ()

    @classmethod
    def of(cls, bank: FeatureBank, train: ShardReader, val: ShardReader, config: Config, learnt: bool) -> Probe:
        """Compute features or map existing files, and build a head. ``learnt``: whether the head is already trained."""
        views = [bank.training_view(train, view) for view in range(config.train.feature_views)]
        # If the head has no dropout inside, timm applies dropout in the model's forward pass, which does not run here.
        dropout = 0.0 if HeadSpec.of(config.model).drops_within else config.model.dropout
        val_view = bank.evaluation_view(val, "val")
        head = build_head(bank.model, views, config.train.standardize, dropout, learnt)
        return cls(bank.model, head, views, val_view)

    def feed(self, setup: TrainingSetup) -> FeatureFeed:
        train = replace(setup.config.train, accumulation=setup.accumulation)
        return FeatureFeed(train, setup.plan, self.views, self.val, setup.accelerator)

    def prepare(self, batch: Batch, targets: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and the targets unchanged."""
        return batch.images, targets

    def whole(self, trained: nn.Module) -> nn.Module:
        """Return the model to save: the whole model with the trained head ``trained``."""
        assert isinstance(trained, Head)
        return merge(self.model, trained)


class FeatureFeed:
    """The batches of a run, like Feed (batches.py), but with cached features in place of images."""

    threads = 0

    def __init__(
        self, config: TrainConfig, plan: TrainPlan, views: Sequence[Features], val: Features, accelerator: Accelerator
    ) -> None:
        self.config, self.plan, self.accelerator, self.views, self.val = config, plan, accelerator, views, val
        self.timer = LoaderTimer()

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """Yield this rank's micro-batches of ``epoch`` from update ``step``. Their ``images`` are features (n, F)."""
        accelerator = self.accelerator
        micro_batches = self.plan.rest_of_epoch(
            epoch, accelerator.process_index, accelerator.num_processes, self.config.accumulation, first_step=step
        )
        for micro_batch in micro_batches:
            which = (epoch + micro_batch.repeat) % len(self.views)
            rows = np.empty((len(which), self.val.values.shape[1]), dtype=np.float32)
            valid = micro_batch.valid.copy()
            for number in np.unique(which):
                own = which == number
                view, samples = self.views[int(number)], micro_batch.indices[own]
                rows[own] = view.values[samples]
                valid[own] &= view.decoded[samples]  # mask samples that could not be decoded
            micro_batch.valid[:] = valid
            yield Batch(to_device(rows, accelerator.device), micro_batch, {})

    def validate(
        self, model: nn.Module, on_batch: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return validation logits (n, G), and whether each sample was decoded (n,). Every rank computes all logits."""
        size, out = self.config.eval_batch_size or ROWS, []
        with torch.inference_mode():
            for start in range(0, len(self.val.values), size):
                rows = self.val.values[start : start + size].astype(np.float32)  # copies the mapped rows
                with self.accelerator.autocast():
                    out.append(model(to_device(rows, self.accelerator.device)).float().cpu().numpy())
                if on_batch is not None:
                    on_batch(len(rows))
        logits = np.concatenate(out)
        logits[~self.val.decoded] = 0.0
        return logits, self.val.decoded

    def errors(self) -> int:
        """Return how many samples could not be decoded. FeatureBank has already checked the limit data.max_errors."""
        return int((~self.val.decoded).sum() + (~self.views[0].decoded).sum())

    def close(self) -> None:
        """Do nothing, because there are no threads."""
