"""The page of ``posters demo``: six pictures of the way from posters to predictions, and links to all results."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from shards.dataset.manifest import Manifest
from shards.visuals.links import page_of, write_page
from shards.visuals.templates import render
from toolkit.app.grad_cam import GradCam
from toolkit.app.overlays import heat_picture
from toolkit.model_folder.folder import ModelFolder
from toolkit.report.build import Report
from toolkit.report.examples import Example

PAGE = "index.html"
#: Path below the folder of the demo -> content. The page has a link to each of these files that exists.
RESULTS = {
    "report/index.html": "report: metrics, calibration, examples",
    "predictions.png": "18 test posters with their predictions",
    "predictions.json": "predictions of all test posters",
    "run/model/README.md": "model card, beside the weights and the labels",
    "run/epochs.csv": "losses and metrics of all epochs",
    "shards/manifest.json": "contents of the shard set",
    "shards/rejected.csv": "rows that were left out, with reasons",
    "posters/metadata.csv": "table of genres",
}


def write_demo_page(
    out: Path, folder: ModelFolder, manifest: Manifest, report: Report, picture: Callable[[int], bytes]
) -> Path:
    """Write ``out``/index.html and return its path.

    ``picture`` returns the encoded image of a test sample, by the number of the sample.
    """
    splits = [(split, manifest.of_split(split)) for split in manifest.split_names]
    page = render(
        "toolkit.cli/demo.html",
        page_of=page_of("Demo", folder.fingerprint),
        report=report.numbers,
        drawn=report.drawn,
        training_plots=report.training_plots,
        splits=[(split, len(shards), sum(shard.samples for shard in shards)) for split, shards in splits],
        heats=[_heat(folder, report, example, picture) for example in report.drawn[:3]],
        results=[(path, words) for path, words in RESULTS.items() if (out / path).exists()],
        model=folder.path.relative_to(out).as_posix(),
    )
    write_page(out / PAGE, page)
    return out / PAGE


def _heat(folder: ModelFolder, report: Report, example: Example, picture: Callable[[int], bytes]) -> dict[str, Any]:
    """Return a genre of a poster, and the poster with the heat map of this genre."""
    with Image.open(io.BytesIO(picture(example.sample))) as opened:
        image = opened.convert("RGB")
    line = max(example.lines, key=lambda line: line.probability)
    square = folder.preprocessing.square(image)
    cam = GradCam(folder.model, folder.preprocessing.image_size)
    pixels = folder.preprocessing.normalize(torch.from_numpy(square[None].copy()))
    heat = cam(pixels, folder.labels.index[line.genre])
    return {"genre": line.genre, "picture": heat_picture(image, heat, folder.preprocessing.view(*image.size))}
