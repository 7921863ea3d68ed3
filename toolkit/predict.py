"""Name the genres of one image, a folder of images, or a whole shard set.

    posters predict -m RUN/model -i poster.jpg          posters predict -m RUN/model -d folder -o out.json
    accelerate launch launch/predict.py --model RUN/model --shards SHARDS_OR_FOLDER --out PRED

A few images become text on the screen, or one file; shard sets and large folders a folder of files (predict_batch.py).
Unreadable images are reported and counted, the rest is predicted. Exit status 1 if nothing could be predicted.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from shards.errors import UserError
from shards.images import EXTENSIONS
from toolkit.data.cuts import file_cutter
from toolkit.data.faults import KEEP_ERRORS
from toolkit.data.files import FileSource, RawTransform
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.plan import EvalPlan
from toolkit.distributed import autocast_dtype, make_accelerator
from toolkit.forward import Forward, ForwardOptions, rows_for
from toolkit.inference import infer_shares
from toolkit.model_folder import ModelFolder, load_model_folder
from toolkit.predict_output import Prediction, write_predictions

log = logging.getLogger(__name__)


def run_predict(args: argparse.Namespace) -> int:
    """Predict and write; returns the exit status."""
    if args.threshold is not None and not 0.0 <= args.threshold <= 1.0:
        raise UserError(f"--threshold must be from 0 to 1, not {args.threshold}")
    if args.batch_size < 0 or args.workers < 0:
        raise UserError("--batch-size and --workers must be 0 (automatic) or more")
    if args.onnx is not None and (args.compile or args.precision in ("fp16", "bf16")):
        raise UserError("--onnx runs the file as it was exported: leave --compile and --precision out")
    if args.shards is not None or (args.directory and args.output and not names_a_file(args)):
        from toolkit.predict_batch import run_predict_batch

        return run_predict_batch(args)
    if args.split or args.ignore_labels:
        raise UserError("--split and --ignore-labels go with --shards")
    if args.embeddings:
        raise UserError("--embeddings goes with --shards, or with --directory and a folder for --out")
    if args.format not in (None, "json", "csv"):
        raise UserError(
            f"--format {args.format} goes with --shards, or with --directory and a folder for --out"
        )
    paths = args.image or list_images(args.directory)
    folder = load_folder(args.model, args.threshold)
    accelerator = make_accelerator(args.precision)
    if accelerator.num_processes > 1:
        raise UserError(
            "several processes need a folder for their files: --shards or --directory with --out FOLDER; run "
            "`posters predict` once for a few images"
        )
    forward = forward_of(args, folder, accelerator)
    predictions = predict_files(folder, paths, accelerator, args.batch_size, args.workers, forward)
    write_predictions(predictions, folder, str(accelerator.device), args.output, args.format, args.verbose)
    failed = sum(p.error is not None for p in predictions)
    for prediction in predictions:
        if prediction.error is not None:
            log.error("cannot read %s: %s", prediction.name, prediction.error)
    if failed:
        rest = "the others were predicted" if failed < len(predictions) else "nothing was predicted"
        log.error("%d of %d images could not be read; %s", failed, len(predictions), rest)
    return 1 if failed == len(predictions) else 0


#: Endings of --output that name a file for all results.
FILE_ENDINGS = (".json", ".csv", ".txt")


def names_a_file(args: argparse.Namespace) -> bool:
    """Whether --output is one file for all results, not a folder for many."""
    return args.format == "json" or args.output.suffix.lower() in FILE_ENDINGS


def forward_of(args: argparse.Namespace, folder: ModelFolder, accelerator: Accelerator) -> Forward:
    """The forward pass that the options ask for, on the accelerator's device."""
    options = ForwardOptions(args.channels_last, args.compile, args.tta, args.embeddings)
    if args.onnx is not None:
        return _onnx_forward(args, folder, accelerator, options)
    model = folder.model.to(accelerator.device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Forward(
        model,
        folder.preprocessing,
        autocast_dtype(accelerator),
        options,
        rows_for(args.batch_size, accelerator.device),
    )


def _onnx_forward(
    args: argparse.Namespace, folder: ModelFolder, accelerator: Accelerator, options: ForwardOptions
) -> Forward:
    from toolkit.onnx_model import OnnxModel

    path = Path(args.onnx) if args.onnx else folder.path / "model.onnx"
    network = OnnxModel(path, folder, accelerator.device)
    return Forward(network, folder.preprocessing, options=replace(options, channels_last=False))


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


def predict_files(
    folder: ModelFolder,
    paths: Sequence[Path],
    accelerator: Accelerator,
    batch_size: int = 0,
    workers: int = 0,
    forward: Forward | None = None,
) -> list[Prediction]:
    """One Prediction per path, in order; unreadable files carry their error."""
    if forward is None:
        model = folder.model.to(accelerator.device)
        forward = Forward(model, folder.preprocessing, autocast_dtype(accelerator))
    source = FileSource(paths)
    shares = EvalPlan(len(paths), rows_for(batch_size, accelerator.device)).shares(0, 1)
    cutter = file_cutter(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    with Loader(
        source, decode_threads(workers), prefetch=4, device=accelerator.device, policy=KEEP_ERRORS
    ) as loader:
        scored = infer_shares(forward, loader, shares, cutter)
    rows = folder.decisions.probabilities(scored.logits)
    probabilities = dict(zip(scored.indices.tolist(), rows, strict=True))
    return [
        Prediction(str(path), probabilities.get(number), scored.errors.get(number))
        for number, path in enumerate(paths)
    ]
