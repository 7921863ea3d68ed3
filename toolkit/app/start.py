"""The start of the page of `posters app`: the model, its quality on a split, and drawn sample posters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.inputs.images import jpeg
from shards.inputs.synthetic import draw_poster
from shards.storage.files import atomic_write
from shards.visuals.templates import render
from toolkit.app.board import upload_folder
from toolkit.app.service import PredictionService
from toolkit.metrics import in_words
from toolkit.model_folder.card import metrics_of
from toolkit.model_folder.folder import OWN_KEY, ModelFolder

#: Number of sample posters, and the seed of the drawings. Each sample has another main genre.
SAMPLES, SEED = 6, 1
#: Splits whose metrics the page shows, best first. Thresholds are chosen on validation, so test figures are fairer.
SPLITS = ("test", "val")


def header(service: PredictionService) -> str:
    """Return the top of the page: what the model is, how good it is, and the pictures of the samples."""
    folder = service.folder
    return render(
        "toolkit.app/header.html",
        folder=folder,
        ours=folder.preprocessing,
        facts=folder.config[OWN_KEY],
        quality=quality(folder),
        in_words=in_words,
        words=service.words,
        samples=[_sample(number) for number in range(SAMPLES)],
    )


def quality(folder: ModelFolder) -> dict[str, Any] | None:
    """Return the split, its number of posters, and precision and recall (micro) from metrics-SPLIT.json.

    None if no metrics file belongs to the thresholds of the model, or if precision or recall is not defined.
    """
    found = dict(metrics_of(folder.path))
    for split in SPLITS:
        values = found.get(split)
        if values is None or values["decisions"] != folder.decisions.fingerprint or not values["thresholds"]:
            continue
        metrics = values["thresholds"][-1]["metrics"]  # the last row has the thresholds of the model
        precision, recall = metrics.get("micro_precision"), metrics.get("micro_recall")
        if precision is None or recall is None:
            continue
        other = values.get("shard_set") != folder.config[OWN_KEY]["shard_set"]
        posters = values["num_samples"]
        return {"split": split, "posters": posters, "precision": precision, "recall": recall, "other": other}
    return None


def sample_file(number: int) -> Path:
    """Write a sample poster into the folder of uploads, which is deleted at the end. Return its path."""
    path = upload_folder() / f"sample {number + 1}.jpg"
    with atomic_write(path) as stream:  # another visitor may read the file now
        stream.write(_sample(number))
    return path


def _sample(number: int) -> bytes:
    image, _ = draw_poster(SEED, number)
    return jpeg(image, 80)
