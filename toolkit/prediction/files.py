"""Predict the genres of one image, a folder of images, or a whole shard set.

    posters predict -m RUN poster.jpg          posters predict -m RUN folder -o out.json
    accelerate launch launch/predict.py --model RUN --shards SHARDS_OR_FOLDER --out PRED

For a few images, the results are text on the screen or one file, or one file beside each image (sidecars.py). For shard
sets and large folders, the results are a folder of files (batch.py). Unreadable images are reported and counted. The
exit status is 1 if all are unreadable.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from shards.console import exact_stdout
from shards.errors import UserError, printable_line, without_secrets
from shards.progress import progress
from toolkit.data.sources.image_files import FileSource, file_id, images_at, list_images
from toolkit.data.sources.image_urls import ImageUrl, require_urls
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
from toolkit.prediction.chunks import FILES_PER_CHUNK
from toolkit.prediction.facts import facts_of
from toolkit.prediction.formats import FORMATS, Shown, ShownOptions
from toolkit.prediction.options import PredictOptions, file_format, wants_a_folder
from toolkit.prediction.sidecars import require_plain_names, sidecar_paths, write_sidecars

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
    if options.sidecar is not None:
        return run_sidecars(options, options.sidecar)
    places = _places(options)
    folder = load_model_folder(options.model)
    options.require_fit(folder.labels)
    accelerator = make_accelerator(options.precision)
    forward = forward_of(options, folder, accelerator)
    predictions = predict_files(folder, places, accelerator, options.batch_size, options.threads, forward, options)
    write_predictions(predictions, folder, str(accelerator.device), options.out, format, options)
    return _report_unreadable(_log_unreadable(predictions), len(places))


def run_sidecars(options: PredictOptions, kind: str) -> int:
    """Predict image files and write one file beside each image. Return the exit status."""
    places = [place for place in _places(options) if isinstance(place, Path)]  # the options refuse URLs
    paths = sidecar_paths(places, kind, options.overwrite)
    folder = load_model_folder(options.model)
    options.require_fit(folder.labels)
    require_plain_names(folder.labels, kind)
    accelerator = make_accelerator(options.precision)
    forward = forward_of(options, folder, accelerator)
    written = failed = 0
    with progress(len(places), "predicting") as bar:
        for start in range(0, len(places), FILES_PER_CHUNK):
            part = slice(start, start + FILES_PER_CHUNK)
            how = (options.batch_size, options.threads, forward, options)
            rows = predict_files(folder, places[part], accelerator, *how)
            written += write_sidecars(paths[part], kind, rows)
            failed += _log_unreadable(rows)
            bar.update(len(rows.ids))
    if options.rule:
        print(f"named          {options.rule} of each image")
    print(f"sidecars       {written} .{kind} files beside their images")
    return _report_unreadable(failed, len(places))


def _places(options: PredictOptions) -> list[Path | ImageUrl]:
    """Return the images that the options name. Raises UserError if there are none, or if a URL is not valid."""
    if options.image is None:
        return [*list_images(options.directory or Path())]
    places: list[Path | ImageUrl] = []
    for place in options.image:
        if isinstance(place, ImageUrl):
            places.append(replace(place, allow_private=options.allow_private))
        else:
            places += images_at(place)
    require_urls([place for place in places if isinstance(place, ImageUrl)])
    return places


def _log_unreadable(predictions: Rows) -> int:
    """Log the images that could not be read, with the reasons. Return their number."""
    for name, error in zip(predictions.ids, predictions.errors, strict=True):
        if error is not None:
            log.error("cannot read %s: %s", printable_line(without_secrets(name)), error)
    return sum(error is not None for error in predictions.errors)


def _report_unreadable(failed: int, count: int) -> int:
    """Log the number of images that could not be read. Return the exit status, which is 1 if no image was read."""
    if failed:
        rest = "the others were predicted" if failed < count else "no image was predicted"
        log.error("%d of %d images could not be read; %s", failed, count, rest)
    return 1 if failed == count else 0


def predict_files(
    folder: ModelFolder,
    paths: Sequence[Path | ImageUrl],
    accelerator: Accelerator,
    batch_size: int = 0,
    workers: int = 0,
    forward: Forward | None = None,
    naming: NamingOptions = PLAIN,
) -> Rows:
    """Return one row per path or URL, in order. Rows of unreadable images have an error."""
    if forward is None:
        model = folder.model.to(accelerator.device)
        forward = Forward(model, folder.preprocessing, autocast_dtype(accelerator))
    source = FileSource(paths)
    transforms = file_transforms(folder.preprocessing.image_size, RawTransform(folder.preprocessing))
    scored = infer_here(forward, source, transforms, accelerator.device, batch_size, workers)
    ids = [file_id(path.url if isinstance(path, ImageUrl) else str(path)) for path in paths]
    return Rows.of(ids, scored, folder, naming, "image")


def write_predictions(
    rows: Rows, folder: ModelFolder, device: str, output: Path | None, format: str, options: ShownOptions
) -> None:
    """Write all results to ``output``, or to the screen if ``output`` is None. ``format`` is a name in FORMATS."""
    shown, writer = Shown(folder, device, options), FORMATS[format]
    if output is None:
        (exact_stdout() if writer.screen == "exact" else sys.stdout).write(writer.text(rows, shown))
        return
    writer.write(output, rows, facts_of(folder, {"content": ""}, rows.naming, {}), shown)
    if rows.naming.rule:
        print(f"named          {rows.naming.rule} of each image")
    print(f"predictions    {output}")
