"""Compute the features of a frozen backbone once, and save them. A head then trains in minutes without a GPU.

    samples of a split ─→ augmentation of epoch v, or transforms of evaluation ─→ backbone ─→ (n, F) float32 in a file

A frozen backbone returns the same features for the same pixels in every epoch. So features are computed only for a few
augmented views of each sample. View v has the augmentation of epoch v, and epoch e trains on view e mod the number of
views. A file's name is a hash of all inputs of the computation, so runs with equal inputs share files. During the
computation, memory contains the features of a few thousand samples. Later all processes of a node map one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shards.errors import UserError
from shards.progress import progress
from toolkit.config.extensions import code_digest
from toolkit.config.schema import Config
from toolkit.data.augment.random_erasing import AREA
from toolkit.data.loader.loader import Batch
from toolkit.data.sampling.plan import EvalPlan, MicroBatch
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Transforms, eval_transforms, train_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.device.defaults import no_room, rows_for
from toolkit.device.out_of_memory import explain_out_of_memory
from toolkit.distributed.collectives import by_main, from_main, gather_by_index, require_read
from toolkit.distributed.votes import StopSignal
from toolkit.models.heads import backbone_features, head_prefixes
from toolkit.training.batches import Pixels, masking_loader
from toolkit.training.cached.feature_files import Features, FeatureWriter, file_of, read_features, share_file

log = logging.getLogger(__name__)

#: Number of samples, over all ranks, after which the features are gathered and written.
SAMPLES_PER_GATHER = 4096
#: Augmentation options that are part of every file's name, even if they are off.
NAMED_OPTIONS = ("brightness", "contrast", "saturation", "randaugment", "magnitude", "erase", "mixup", "cutmix")
#: Former augmentation options, which are constant now. They are still part of the names, so earlier files stay valid.
CONSTANT = {"erase_area": AREA, "mix_prob": 1.0}
#: Part of every file's name. Increase VERSION if new code computes other features, so that older files are not used.
VERSION = 2


class View(NamedTuple):
    """A split with its transforms, from which the backbone computes features."""

    reader: ShardReader
    title: str
    transforms: Transforms
    pixels: Callable[[Batch], torch.Tensor]
    """Function from a batch to the input of the backbone, (n, 3, S, S)."""


class FeatureBank:
    """Computes features of splits, or maps existing files. Every rank makes the same calls and gets the same arrays."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        config: Config,
        preprocessing: Preprocessing,
        folder: Path,
        shard_set: str,
    ) -> None:
        """``model`` is a timm model, whose backbone computes the features. It is moved to the accelerator's device."""
        model = model.to(accelerator.device).to(memory_format=torch.channels_last)
        self.accelerator, self.model, self.config = accelerator, model, config
        self.preprocessing, self.folder, self.shard_set = preprocessing, folder, shard_set
        self._backbone = backbone_hash(model)
        self._pixels = Pixels(config, model, preprocessing, accelerator)

    def training_view(self, reader: ShardReader, view: int) -> Features:
        """Return the features of the training images, which are augmented as in epoch number ``view``."""
        config, data, seed = self.config, self.config.data, self.config.train.seed
        seen = [data.fit, data.crop_pct]
        crop = seen if data.train_crop == "none" else [*data.crop_scale, *data.crop_ratio]
        transforms = train_transforms(reader, data, seed, view, self.accelerator.device)
        facts = {
            "view": view,
            "seed": seed,
            "crop": [*crop, data.flip],
            # Options that are off are left out, except NAMED_OPTIONS. So a new option does not change old file names.
            "augment": CONSTANT
            | {n: value for n, value in vars(config.augment).items() if value or n in NAMED_OPTIONS}
            | ({"code": code_digest(config.augment.name)} if config.augment.name else {}),
        }

        def pixels(batch: Batch) -> torch.Tensor:
            none = torch.zeros((len(batch.images), 0), device=batch.images.device)
            return self._pixels.prepare(batch, none, view)[0]

        return self._features("train", facts, View(reader, f"features of train (view {view + 1})", transforms, pixels))

    def evaluation_view(self, reader: ShardReader, split: str) -> Features:
        """Return the features of a split with the transforms of evaluation."""
        facts = {"view": None, "fit": self.preprocessing.fit, "crop_pct": self.preprocessing.crop_pct}
        transforms = eval_transforms(reader, self.preprocessing, self.config.data.geometry, self.accelerator.device)
        title = f"features of {split} (evaluation view)"
        view = View(reader, title, transforms, lambda batch: self._pixels.normal(batch.images))
        return self._features(split, facts, view)

    def _features(self, split: str, facts: dict[str, Any], view: View) -> Features:
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
        path = self.folder / f"{split}-{name}.npy"
        there = from_main(self.accelerator, file_of(path))
        if there is None:
            self._fill(path, view)
        path = self.folder / (there or path.name)
        share_file(self.accelerator, path)
        failure: UserError | None = None
        try:
            features = read_features(path, len(view.reader))
        except UserError as error:
            failure = error
        require_read(self.accelerator, failure)
        return features

    def _fill(self, path: Path, view: View) -> None:
        """Compute the features of ``view``, a split with its transforms. The main process writes them to ``path``."""
        accelerator, rows = self.accelerator, self.config.train.eval_batch_size
        stop = StopSignal(accelerator)
        try:
            with contextlib.ExitStack() as kept:
                writer = FeatureWriter(path, len(view.reader))
                by_main(accelerator, lambda: kept.enter_context(writer))
                with explain_out_of_memory(lambda: no_room(rows, accelerator.device, "--train.eval_batch_size")):
                    self._compute(
                        view,
                        lambda rows: by_main(accelerator, lambda: writer.add(rows)),
                        lambda: stop.check(f"{view.title} must be computed again"),
                    )
                by_main(accelerator, kept.close)
            stop.check(f"{view.title} are kept", now=True)
        finally:
            stop.restore()

    def _compute(self, view: View, add: Callable[[np.ndarray], object], on_batch: Callable[[], None]) -> None:
        """Compute the features of ``view`` in sample order. On every rank, pass blocks of features to ``add``."""
        accelerator, count = self.accelerator, len(view.reader)
        plan = EvalPlan(count, rows_for(self.config.train.eval_batch_size, accelerator.device))
        world, steps = accelerator.num_processes, plan.steps(accelerator.num_processes)
        every = max(1, SAMPLES_PER_GATHER // (plan.batch * world))
        micro_batches = plan.micro_batches(accelerator.process_index, world)
        own: list[tuple[np.ndarray, np.ndarray]] = []
        done, failure = 0, None
        bad: list[int] = []
        with (
            contextlib.closing(self._own_rows(view, micro_batches)) as batches,
            progress(count, view.title, disable=not accelerator.is_main_process) as bar,
        ):
            for step in range(1, steps + 1):
                try:
                    if failure is None:
                        own.append(next(batches))
                except UserError as error:
                    failure = error
                on_batch()
                end = min(step * world * plan.batch, count)
                bar.update(end - bar.n)
                if step % every and step < steps:
                    continue
                require_read(accelerator, failure)
                indices, rows = (np.concatenate(part) for part in zip(*own, strict=True))
                together = gather_by_index(accelerator, end - done, indices - done, rows)
                bad += (done + np.flatnonzero(~np.isfinite(together).all(axis=1))).tolist()
                add(together)
                own, done = [], end
        if bad:  # equal on all ranks
            ids = view.reader.sample_ids()
            shown = ", ".join(ids[row] for row in bad[:3])
            raise UserError(
                "not-finite",
                f"{view.title} are not finite for {len(bad)} of {len(ids)} samples ({shown}), because the backbone "
                f"overflows: use --train.precision no or bf16, take other weights, or set --train.feature_views 0",
            )

    def _own_rows(
        self, view: View, micro_batches: Iterable[MicroBatch]
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yield two arrays per batch of this rank: sample indices (k,), and rows (k, F + 1) of a feature file."""
        accelerator = self.accelerator
        self.model.eval()
        with (
            # No substitutes, because the features of a substitute would get the damaged sample's labels.
            masking_loader(view.reader, self.config, accelerator.device) as loader,
            view.reader.in_order(accelerator.is_local_main_process),
            torch.inference_mode(),
            contextlib.closing(loader.batches(micro_batches, view.transforms)) as batches,
        ):
            for batch in batches:
                images = view.pixels(batch)
                with accelerator.autocast():
                    out = backbone_features(self.model, images)
                damaged = np.isin(np.arange(len(batch.micro_batch.indices)), list(batch.errors))
                keep = batch.micro_batch.valid | damaged
                rows = np.ones((len(out), out.shape[1] + 1), dtype=np.float32)
                rows[:, :-1] = out.float().cpu().numpy()
                rows[damaged] = 0.0
                yield batch.micro_batch.indices[keep], rows[keep]


def backbone_hash(model: Any) -> str:
    """Return the SHA-256 of all tensors except the classifier's. Models with equal hashes compute equal features."""
    head = head_prefixes(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(head):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
