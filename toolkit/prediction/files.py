"""Predict the genres of one image, a folder of images, or a whole shard set.

    posters predict -m RUN poster.jpg          posters predict -m RUN folder -o out.json
    accelerate launch launch/predict.py --model RUN --shards SHARDS_OR_FOLDER --out PRED

For a few images, the results are text on the screen or one file. For shard sets and large folders, the results are a
folder of files (batch.py). Unreadable images are reported and counted. The exit status is 1 if all are unreadable.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from shards.console import exact_stdout
from shards.errors import UserError, printable_line
from toolkit.data.sources.image_files import FileSource, file_id, images_at, list_images
from toolkit.data.transforms.batch_transform import RawTransform, file_transforms
from toolkit.device.defaults import autocast_dtype
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.launch import processes_of
from toolkit.inference.forward import Forward
from toolkit.inference.naming import PLAIN, NamingOptions
from toolkit.inference.rows import Rows
from toolkit.inference.scoring import infer_here
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction.batch import forward_of, run_predict_batch
from toolkit.prediction.facts import facts_of
from toolkit.prediction.formats import FORMATS, Shown, ShownOptions
from toolkit.prediction.options import PredictOptions, file_format, wants_a_folder

log = logging.getLogger(__name__)


def run_predict(options: PredictOptions) -> int:
    """Predict and write the results; return the exit status."""
    if wants_a_folder(options):
        return run_predict_batch(options)
    if options.split or options.ignore_labels:
        raise UserError("option-conflict", "--split and --ignore-labels need --shards")
    if options.embeddings:
        raise UserError("option-conflict", "--embeddings needs --shards, or --directory with a folder as --out")
    format = file_format(options.out, options.format)
    if processes_of(os.environ) > 1:
        raise UserError(
            "option-conflict",
            "several processes need --out FOLDER with --shards or --directory; for a few images, start "
            "`posters predict` without a launcher",
        )
    named = [path for place in options.image or () for path in images_at(place)]
    paths = named or list_images(options.directory or Path())
    folder = load_model_folder(options.model)
    accelerator = make_accelerator(options.precision)
    forward = forward_of(options, folder, accelerator)
    predictions = predict_files(folder, paths, accelerator, options.batch_size, options.threads, forward, options)
    write_predictions(predictions, folder, str(accelerator.device), options.out, format, options)
    failed = sum(error is not None for error in predictions.errors)
    for name, error in zip(predictions.ids, predictions.errors, strict=True):
        if error is not None:
            log.error("cannot read %s: %s", printable_line(name), error)
    if failed:
        rest = "the others were predicted" if failed < len(paths) else "no image was predicted"
        log.error("%d of %d images could not be read; %s", failed, len(paths), rest)
    return 1 if failed == len(paths) else 0


def predict_files(
    folder: ModelFolder,
    paths: Sequence[Path],
    accelerator: Accelerator,
    batch_size: int = 0,
    workers: int = 0,
    forward: Forward | None = None,
    naming: NamingOptions = PLAIN,
) -> Rows:
    """Return one row per path, in order. Rows of unreadable files have an error."""
    if forward is None:
        model = folder.model.to(accelerator.device)
        forward = Forward(model, folder.preprocessing, autocast_dtype(accelerator))
    source = FileSource(paths)
    transforms = file_transforms(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    scored = infer_here(forward, source, transforms, accelerator.device, batch_size, workers)
    return Rows.of([file_id(str(path)) for path in paths], scored, folder, naming, "image")


def write_predictions(
    rows: Rows, folder: ModelFolder, device: str, output: Path | None, format: str, options: ShownOptions
) -> None:
    """Write all results to ``output``, or to the screen if ``output`` is None. ``format`` is a name in FORMATS."""
    shown, writer = Shown(folder, device, options), FORMATS[format]
    if output is None:
        (exact_stdout() if writer.screen == "exact" else sys.stdout).write(writer.text(rows, shown))
        return
    writer.write(output, rows, facts_of(folder, {"content": ""}, rows.naming, {}), shown)
    print(f"predictions    {output}")
