"""Name the genres of one image, a folder of images, or a whole shard set.

    posters predict -m RUN/model -i poster.jpg          posters predict -m RUN/model -d folder -f json -o out.json
    accelerate launch launch/predict.py --model RUN/model --shards SHARDS --out PRED

Unreadable images are reported and counted, the rest is predicted. Exit status 1 if nothing could be predicted.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from shards.errors import UserError
from shards.images import EXTENSIONS, BadImage, ImageOptions, decode
from toolkit.data.cuts import file_cutter
from toolkit.data.faults import KEEP_ERRORS
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.plan import EvalPlan
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import make_accelerator
from toolkit.inference import infer_shares
from toolkit.model_folder import ModelFolder, load_model_folder
from toolkit.predict_output import Prediction, write_predictions

log = logging.getLogger(__name__)

RAW = ImageOptions(min_side=1)  # a user's own file may be small; what can be decoded is predicted


def run_predict(args: argparse.Namespace) -> int:
    """Predict and write; returns the exit status."""
    if args.threshold is not None and not 0.0 <= args.threshold <= 1.0:
        raise UserError(f"--threshold must be from 0 to 1, not {args.threshold}")
    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers 0 or more")
    if args.shards is not None:
        from toolkit.predict_shards import run_predict_shards

        return run_predict_shards(args)
    if args.split or args.ignore_labels:
        raise UserError("--split and --ignore-labels go with --shards")
    paths = args.image or list_images(args.directory)
    folder = load_folder(args.model, args.threshold)
    accelerator = make_accelerator(args.precision)
    if accelerator.num_processes > 1:
        raise UserError(
            "several processes predict shard sets only (--shards); run `posters predict` once for images"
        )
    predictions = predict_files(folder, paths, accelerator, args.batch_size, args.workers)
    write_predictions(predictions, folder, str(accelerator.device), args.output, args.format, args.verbose)
    failed = sum(p.error is not None for p in predictions)
    for prediction in predictions:
        if prediction.error is not None:
            log.error("cannot read %s: %s", prediction.name, prediction.error)
    if failed:
        rest = "the others were predicted" if failed < len(predictions) else "nothing was predicted"
        log.error("%d of %d images could not be read; %s", failed, len(predictions), rest)
    return 1 if failed == len(predictions) else 0


def load_folder(path: Path, threshold: float | None) -> ModelFolder:
    """A model folder, with ``threshold`` (on calibrated probabilities) for every genre if it is given."""
    folder = load_model_folder(path)
    if threshold is not None:
        folder.decisions = folder.decisions.at(threshold)
    return folder


def list_images(directory: Path) -> list[Path]:
    """Image files below a folder, sorted. Raises UserError if there is none."""
    if not directory.is_dir():
        raise UserError(f"image folder not found: {directory}")
    found = [
        Path(root) / name
        for root, _, names in os.walk(directory)
        for name in names
        if name.endswith(EXTENSIONS)
    ]
    if not found:
        raise UserError(f"no .jpg, .jpeg or .png file in {directory}")
    return sorted(found)


@dataclass(frozen=True)
class FileSource:
    """Image files as a Loader's source."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> memoryview:
        return memoryview(bytearray(self.paths[index].read_bytes()))

    def where(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class RawTransform:
    """The model's preprocessing on users' own files: upright, alpha on white, bombs refused, as shards have it."""

    preprocessing: Preprocessing

    def __call__(self, data: bytes) -> np.ndarray:
        try:
            image = decode(data, RAW)
        except BadImage as bad:
            raise ValueError(f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason) from None
        return self.preprocessing.square(image)


def predict_files(
    folder: ModelFolder,
    paths: Sequence[Path],
    accelerator: Accelerator,
    batch_size: int = 64,
    workers: int = 0,
) -> list[Prediction]:
    """One Prediction per path, in order; unreadable files carry their error."""
    model = folder.model.to(accelerator.device)
    source = FileSource(paths)
    shares = EvalPlan(len(paths), batch_size).shares(0, 1)
    cutter = file_cutter(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    with Loader(
        source, decode_threads(workers), prefetch=4, device=accelerator.device, policy=KEEP_ERRORS
    ) as loader:
        indices, logits, errors = infer_shares(
            model, loader, shares, cutter, folder.preprocessing, accelerator
        )
    probabilities = dict(zip(indices.tolist(), folder.decisions.probabilities(logits), strict=True))
    return [
        Prediction(str(path), probabilities.get(number), errors.get(number))
        for number, path in enumerate(paths)
    ]
