"""Features of a frozen backbone, computed once and kept: a head then trains in minutes without a GPU.

samples of a split ─ view v of the training augmentation, or the evaluation view ─→ backbone ─→ (n, F) float16, on disk

A backbone that does not learn gives the same features for the same pixels in every epoch. So a few augmented views per
sample are taken once (view v has the crops of epoch v), and epoch e trains on view e mod views. Files are named by all
that decides their content, so that runs which share it share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shards.errors import UserError, one_line
from shards.files import atomic_write
from shards.progress import progress
from toolkit.config import Config
from toolkit.data.cuts import Cutter, eval_cutter, train_cutter
from toolkit.data.faults import FaultPolicy
from toolkit.data.loader import Batch, Loader, decode_threads
from toolkit.data.pixels import Augmenter
from toolkit.data.plan import EvalPlan
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import StopSignal, autocast_dtype, by_main, gather_by_index
from toolkit.forward import no_room, rows_for
from toolkit.models import head_prefixes
from toolkit.out_of_memory import memory_told

log = logging.getLogger(__name__)

#: To be raised when the same facts give other features: files of an older version are then left alone.
VERSION = 2


@dataclass(frozen=True)
class Features:
    """Features of all samples of a split under one view."""

    values: np.ndarray
    """(n, F) float16; rows that could not be decoded are zero."""
    decoded: np.ndarray
    """(n,) bool."""


class FeatureBank:
    """Computes features of splits or reads them back. Every rank makes the same calls and gets the same arrays."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        config: Config,
        preprocessing: Preprocessing,
        folder: Path,
        shard_set: str,
    ) -> None:
        """``model`` is a whole timm model on the accelerator's device, whose backbone gives the features."""
        self.accelerator, self.model, self.config = accelerator, model, config
        self.preprocessing, self.folder, self.shard_set = preprocessing, folder, shard_set
        self._backbone = backbone_hash(model)

    def training_view(self, reader: ShardReader, view: int) -> Features:
        """Features of the training split's crops, flips and other augmentation of epoch ``view``."""
        config, seed = self.config, self.config.train.seed
        augment = Augmenter(config.augment, seed)
        data = config.data
        cutter = train_cutter(reader, data, seed, view, self.accelerator.device)
        facts = {
            "view": view,
            "seed": seed,
            "crop": [*data.crop_scale, *data.crop_ratio, data.flip],
            "augment": asdict(config.augment),
        }

        def pixels(batch: Batch) -> torch.Tensor:
            none = torch.zeros((len(batch.images), 0), device=batch.images.device)
            return augment(batch.images, none, batch.share, view)[0]

        return self._features(reader, "train", facts, cutter, pixels)

    def evaluation_view(self, reader: ShardReader, split: str) -> Features:
        """Features of a split as evaluation sees it."""
        facts = {"view": None, "fit": self.preprocessing.fit, "crop_pct": self.preprocessing.crop_pct}
        cutter = eval_cutter(reader, self.preprocessing, self.config.data.geometry, self.accelerator.device)
        return self._features(reader, split, facts, cutter, lambda batch: batch.images)

    def _features(
        self,
        reader: ShardReader,
        split: str,
        facts: dict[str, Any],
        cutter: Cutter,
        pixels: Callable[[Batch], torch.Tensor],
    ) -> Features:
        facts = {
            "version": VERSION,
            "split": split,
            "shards": self.shard_set,
            "backbone": [type(self.model).__name__, self._backbone],
            "pixels": [self.preprocessing.image_size, self.preprocessing.mean, self.preprocessing.std],
            "precision": self.accelerator.mixed_precision,
            "geometry": [self.config.data.geometry, self.accelerator.device.type],
            **facts,
        }
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{split}-{name}.npz"
        if self._agreed(path):
            return _read(path, len(reader))
        what = "as evaluated" if facts["view"] is None else f"view {facts['view'] + 1}"
        title = f"features of {split}, {what}"
        stop, rows = StopSignal(self.accelerator), self.config.train.eval_batch_size
        try:
            with memory_told(lambda: no_room(rows, self.accelerator.device, "--train.eval_batch_size")):
                found = self._compute(
                    reader, title, cutter, pixels, lambda: stop.check(f"{title}, are to be computed anew")
                )
            _require_finite(found, reader, title)
            by_main(self.accelerator, lambda: _write(path, found))
            stop.check(f"{title}, are kept", True)
        finally:
            stop.restore()
        return found

    def _agreed(self, path: Path) -> bool:
        """Whether every rank has the file: one that computes alone would wait for the others for ever."""
        here = torch.tensor([float(path.is_file())], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            here = self.accelerator.reduce(here, reduction="sum")
        return int(here.item()) == self.accelerator.num_processes

    def _compute(
        self,
        reader: ShardReader,
        title: str,
        cutter: Cutter,
        pixels: Callable[[Batch], torch.Tensor],
        on_batch: Callable[[], None],
    ) -> Features:
        accelerator, train = self.accelerator, self.config.train
        shares = EvalPlan(len(reader), rows_for(train.eval_batch_size, accelerator.device)).shares(
            accelerator.process_index, accelerator.num_processes
        )
        data = self.config.data
        # Never replaced: a substitute's features would stand under the damaged sample's labels.
        policy = FaultPolicy("stop" if data.on_error == "stop" else "mask", data.max_errors)
        indices: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        dtype = autocast_dtype(accelerator)
        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model.eval()
        with (
            Loader(
                reader,
                decode_threads(data.workers, accelerator.device),
                data.prefetch,
                device=accelerator.device,
                policy=policy,
            ) as loader,
            reader.in_order(accelerator.is_local_main_process),
            progress(len(reader), title, disable=not accelerator.is_main_process) as bar,
            torch.inference_mode(),
            contextlib.closing(loader.batches(shares, cutter)) as batches,
        ):
            for batch in batches:
                images = self.preprocessing.normalize(pixels(batch), dtype).contiguous(
                    memory_format=memory_format
                )
                with accelerator.autocast():
                    out = backbone_features(self.model, images)
                damaged = np.isin(np.arange(len(batch.share.indices)), list(batch.errors))
                keep = batch.share.valid | damaged
                values = out.half().cpu().numpy()
                values[damaged] = 0
                flags = (~damaged).astype(np.float16)[:, None]
                indices.append(batch.share.indices[keep])
                rows.append(np.concatenate([values, flags], axis=1)[keep])
                bar.update(int(keep.sum()) * accelerator.num_processes)
                on_batch()
        everything = gather_by_index(accelerator, len(reader), np.concatenate(indices), np.concatenate(rows))
        return Features(np.ascontiguousarray(everything[:, :-1]), everything[:, -1] > 0)


def backbone_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(n, F) what the classifier of a timm model in evaluation mode is given for (n, 3, S, S) images."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def classifier_path(model: nn.Module) -> str:
    """Dotted name of a model's one classifier, whether timm's own layer or our layers in its place.

    Raises UserError for distilled models, which have two.
    """
    prefixes = head_prefixes(model)
    if len(prefixes) != 1:
        raise UserError(
            f"{type(model).__name__} has no single classifier: train.feature_views does not fit it"
        )
    return prefixes[0].rstrip(".")


def backbone_hash(model: Any) -> str:
    """SHA-256 of all tensors but the classifier's: two models that agree in it give the same features."""
    head = head_prefixes(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        np.savez(stream, values=features.values, decoded=features.decoded)


def _require_finite(found: Features, reader: ShardReader, title: str) -> None:
    """Raise UserError, on every rank, for features that half precision does not hold."""
    bad = np.flatnonzero(~np.isfinite(found.values).all(axis=1))
    if len(bad):
        shown = ", ".join(reader.sample_ids()[row] for row in bad[:3])
        raise UserError(
            f"{title}, are not finite for {len(bad)} of {len(found.values)} samples ({shown}): half precision, in "
            f"which they are kept, ends at 65504; take other weights, or --train.feature_views 0"
        )


def _read(path: Path, count: int) -> Features:
    """What `_write` wrote of ``count`` samples. Raises UserError for anything else: the folder may be shared."""
    problem = "its arrays are of other types or shapes"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
        with np.load(path, allow_pickle=False) as stored:
            values, decoded = stored["values"], stored["decoded"]
        if (
            (values.dtype, decoded.dtype, values.ndim) == (np.float16, np.bool_, 2)
            and (len(values), decoded.shape) == (count, (count,))
            and np.isfinite(values).all()
        ):
            return Features(values, decoded)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        problem = one_line(error)[:200]
    raise UserError(
        f"{path} holds no features of {count} samples ({problem}): remove it, to have them computed again"
    )
