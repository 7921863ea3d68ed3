"""Compute a model's logits on a split, and write them to the file predictions-SPLIT.npz.

With this file, users can try other thresholds and compare runs without a second forward pass. The file contains no
pickle. Its arrays are: ids (N,) str, logits (N, G) float32 without calibration, targets (N, G) uint8, genres (G,) str,
split, and the fingerprints of the weights and of the shard set. If the shard set has sample weights, another array is
sample_weights (N,) float64.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from shards.dataset.labels import require_same
from shards.dataset.manifest import Manifest
from shards.dataset.store import ShardsAt
from shards.errors import UserError, one_line
from shards.progress import progress
from shards.storage.files import atomic_write
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import eval_transforms
from toolkit.device.defaults import autocast_dtype
from toolkit.inference.forward import Forward, require_finite_outputs
from toolkit.inference.scoring import infer_all, inference_loader
from toolkit.metrics.helpers import BoolArray, FloatArray
from toolkit.model_folder.folder import ModelFolder


@dataclass(frozen=True, eq=False)
class SplitLogits:
    """A model's logits and the true labels of N samples with G genres, in the order of the split."""

    split: str
    ids: list[str]
    logits: FloatArray
    """(N, G) finite logits without calibration."""
    targets: BoolArray
    """(N, G) true labels."""
    genres: tuple[str, ...]
    weights: str
    """Fingerprint of the model's weights."""
    shard_set: str
    """Fingerprint of the shard set."""
    sample_weights: FloatArray | None = None
    """(N,) sample weights. None if the shard set has no weights."""

    def save(self, path: Path) -> None:
        """Write the .npz file atomically."""
        with atomic_write(path) as stream:
            order = ("ids", "logits", "targets", "genres", "split", "weights", "shard_set")
            types = {"logits": np.float32, "targets": np.uint8}
            arrays: dict[str, Any] = {key: np.array(getattr(self, key), types.get(key)) for key in order}
            if self.sample_weights is not None:
                arrays["sample_weights"] = self.sample_weights
            np.savez_compressed(stream, **arrays)


def read_outputs(path: Path, folder: ModelFolder, shard_set: str, reader: ShardReader, split: str) -> FloatArray | None:
    """Return the (N, G) logits of a file that `SplitLogits.save` wrote. None if the file is missing.

    Also return None if the file has the outputs of other weights, of another shard set or of another split. Raises
    UserError if the file is damaged.
    """
    remedy = "delete it, or run `posters evaluate` again"
    try:
        with np.load(path, allow_pickle=False) as file:
            expected = {"weights": folder.fingerprint, "shard_set": shard_set, "split": split}
            if any(str(file[key]) != value for key, value in expected.items()):
                return None
            ids, logits = file["ids"], file["logits"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # The text of numpy's ValueError recommends to load the file in an unsafe way.
        why = "it is not a file of plain numpy arrays" if isinstance(error, ValueError) else one_line(error)
        raise UserError("predictions-damaged", f"{path} cannot be read ({why}); {remedy}") from None
    shape = (len(reader), len(folder.labels))
    if logits.shape != shape or logits.dtype != np.float32 or not np.isfinite(logits).all():
        what = f"its logits are not {shape[0]} x {shape[1]} finite float32 numbers"
        raise UserError("predictions-damaged", f"{path} does not fit the split {split}: {what}; {remedy}")
    if ids.tolist() != reader.sample_ids():
        raise UserError("predictions-damaged", f"{path} has other ids than the split {split}; {remedy}")
    return logits.astype(np.float64)


def infer_split(
    accelerator: Accelerator,
    folder: ModelFolder,
    shards: ShardsAt,
    manifest: Manifest,
    split: str,
    batch_size: int = 0,
    workers: int = 0,
) -> SplitLogits:
    """Return the model's logits on a split, on every rank. Each sample is used once, with any number of processes.

    Raises UserError if shard set and model have different labels, the split is missing, or an output is not finite.
    """
    require_same("the model", folder.labels, "the shard set", manifest.labels)
    reader = ShardReader.of_split(shards, split, manifest)
    ids = reader.sample_ids()  # raises before the forward passes if an index does not match the manifest
    forward = Forward(folder.model.to(accelerator.device), folder.preprocessing, autocast_dtype(accelerator))
    transforms = eval_transforms(reader, folder.preprocessing, "auto", accelerator.device)
    with (
        inference_loader(reader, accelerator.device, workers) as loader,
        reader.in_order(accelerator.is_local_main_process),
        progress(len(reader), f"evaluating {split}", disable=not accelerator.is_main_process) as bar,
    ):
        world = accelerator.num_processes
        logits, _ = infer_all(forward, loader, transforms, batch_size, accelerator, lambda n: bar.update(n * world))
    require_finite_outputs((logits,), ids.__getitem__, accelerator.mixed_precision != "no")
    scores, truth = logits.astype(np.float64), reader.targets.astype(np.bool_)
    facts = folder.labels.genres, folder.fingerprint, manifest.fingerprint
    return SplitLogits(split, ids, scores, truth, *facts, reader.weights)
