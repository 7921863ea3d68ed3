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

from accelerate import Accelerator

from shards.errors import UserError, printable_line
from toolkit.data.loader.faults import KEEP_ERRORS
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import EvalPlan
from toolkit.data.sources.image_files import FileSource, file_id, list_images
from toolkit.data.transforms.batch_transform import file_cutter
from toolkit.data.transforms.image_transform import RawTransform
from toolkit.device.defaults import ahead_for, autocast_dtype, decode_threads, rows_for
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.launch import processes_of
from toolkit.inference.forward import Forward
from toolkit.inference.scoring import infer_shares
from toolkit.model_folder.folder import ModelFolder
from toolkit.prediction.batch import run_predict_batch
from toolkit.prediction.formats import error_text
from toolkit.prediction.options import PredictOptions, file_format, forward_of, load_folder, wants_a_folder
from toolkit.prediction.output import Prediction, write_predictions

log = logging.getLogger(__name__)


def run_predict(options: PredictOptions) -> int:
    """Predict and write; returns the exit status."""
    if wants_a_folder(options):
        return run_predict_batch(options)
    if options.split or options.ignore_labels:
        raise UserError("--split and --ignore-labels go with --shards")
    if options.embeddings:
        raise UserError("--embeddings goes with --shards, or with --directory and a folder for --out")
    format = file_format(options.out, options.format)
    if processes_of(os.environ) > 1:
        raise UserError(
            "several processes need a folder for their files: --shards or --directory with --out FOLDER; run "
            "`posters predict` once for a few images"
        )
    paths = options.image or list_images(options.directory or Path())
    folder = load_folder(options.model, options.threshold)
    accelerator = make_accelerator(options.precision)
    forward = forward_of(options, folder, accelerator)
    predictions = predict_files(folder, paths, accelerator, options.batch_size, options.threads, forward)
    write_predictions(predictions, folder, str(accelerator.device), options.out, format, options.verbose)
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
    shares = EvalPlan(len(paths), rows_for(batch_size, accelerator.device)).shares(0, 1)
    cutter = file_cutter(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    ahead = ahead_for(accelerator.device)
    with Loader(
        source,
        decode_threads(workers, accelerator.device),
        ahead,
        device=accelerator.device,
        policy=KEEP_ERRORS,
    ) as loader:
        scored = infer_shares(forward, loader, shares, cutter)
    rows = folder.decisions.probabilities(scored.logits)
    probabilities = dict(zip(scored.indices.tolist(), rows, strict=True))
    return [
        Prediction(file_id(str(path)), probabilities.get(number), error_text(scored.errors.get(number)))
        for number, path in enumerate(paths)
    ]
