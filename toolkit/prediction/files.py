"""Name the genres of one image, a folder of images, or a whole shard set.

    posters predict -m RUN/model -i poster.jpg          posters predict -m RUN/model -d folder -o out.json
    accelerate launch launch/predict.py --model RUN/model --shards SHARDS_OR_FOLDER --out PRED

A few images become text on the screen, or one file; shard sets and large folders a folder of files (batch.py).
Unreadable images are reported and counted, the rest is predicted. Exit status 1 if nothing could be predicted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from shards.errors import UserError, printable_line
from toolkit.data.sources.image_files import FileSource, file_id, list_images
from toolkit.data.transforms.batch_transform import file_cutter
from toolkit.data.transforms.image_transform import RawTransform
from toolkit.device.defaults import autocast_dtype
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.launch import processes_of
from toolkit.inference.forward import Forward
from toolkit.inference.scoring import infer_here
from toolkit.model_folder.folder import ModelFolder
from toolkit.prediction.batch import run_predict_batch
from toolkit.prediction.formats import error_text
from toolkit.prediction.options import check_options, file_format, forward_of, load_folder, wants_a_folder
from toolkit.prediction.output import Prediction, write_predictions

if TYPE_CHECKING:
    import argparse

log = logging.getLogger(__name__)


def run_predict(args: argparse.Namespace) -> int:
    """Predict and write; returns the exit status."""
    check_options(args)
    if wants_a_folder(args):
        return run_predict_batch(args)
    if args.split or args.ignore_labels:
        raise UserError("--split and --ignore-labels go with --shards")
    if args.embeddings:
        raise UserError("--embeddings goes with --shards, or with --directory and a folder for --out")
    format = file_format(args.output, args.format)
    if processes_of(os.environ) > 1:
        raise UserError(
            "several processes need a folder for their files: --shards or --directory with --out FOLDER; run "
            "`posters predict` once for a few images"
        )
    paths = args.image or list_images(args.directory)
    folder = load_folder(args.model, args.threshold)
    accelerator = make_accelerator(args.precision)
    forward = forward_of(args, folder, accelerator)
    predictions = predict_files(folder, paths, accelerator, args.batch_size, args.workers, forward)
    write_predictions(predictions, folder, str(accelerator.device), args.output, format, args.verbose)
    failed = sum(p.error is not None for p in predictions)
    for prediction in predictions:
        if prediction.error is not None:
            log.error("cannot read %s: %s", printable_line(prediction.name), printable_line(prediction.error))
    if failed:
        rest = "the others were predicted" if failed < len(predictions) else "nothing was predicted"
        log.error("%d of %d images could not be read; %s", failed, len(predictions), rest)
    return 1 if failed == len(predictions) else 0


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
    cutter = file_cutter(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    scored = infer_here(forward, source, cutter, accelerator.device, batch_size, workers)
    rows = folder.decisions.probabilities(scored.logits)
    probabilities = dict(zip(scored.indices.tolist(), rows, strict=True))
    return [
        Prediction(file_id(str(path)), probabilities.get(number), error_text(scored.errors.get(number)))
        for number, path in enumerate(paths)
    ]
