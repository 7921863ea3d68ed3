"""Compare the outputs of an exported file with those of its model, on images in batches of several sizes.

The reference is the whole pipeline of `posters predict`: Pillow, `Preprocessing`, the network in PyTorch, `Decisions`.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from shards.errors import UserError
from shards.inputs.images import ANY, BadImage, decode
from shards.inputs.synthetic import draw_poster_set
from shards.storage.endings import ENDINGS_TEXT, is_image_name
from toolkit.export.onnx_preprocessing import NORMALISED
from toolkit.model_folder.folder import ModelFolder
from toolkit.models.heads import backbone_features

log = logging.getLogger(__name__)

#: Largest number of images of --check. They are evenly spaced over the found ones.
MAX_IMAGES = 64
#: Batch sizes of the check, in this order. The last one repeats.
BATCHES = (1, 3, 8)
#: Tolerance of logits for the same input. Float32 sums in another order differ by 1e-6 to 1e-5. A difference of 1e-3
#: changes an uncalibrated probability by at most 0.00025, and a missing layer or another GELU exceeds it.
TOLERANCE = 1e-3
#: Tolerance of probabilities if some input pixels differ by one grey level (onnx_preprocessing.py). With a fifth of the
#: pixels one level off, probabilities of a steep head on a ResNet50 (random weights, deviation 0.1) changed by 0.02.
#: The strict limits are those of pixels, and of logits on the file's own pixels.
TOLERANCE_PREPROCESS = 0.05
#: Limits of the difference from Pillow's pixels in grey levels. Half a pixel of error or a plain resize is far over.
MAX_LEVELS, MEAN_LEVELS = 3.0, 0.5

#: (n, 3, S, S) float32 or (n, H, W, 3) uint8 → outputs by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass
class Differences:
    """Largest absolute differences over all images."""

    images: int
    batches: set[int] = field(default_factory=set)
    logits: float = 0.0
    probabilities: float = 0.0
    embedding: float = 0.0
    """As a fraction of the largest absolute value in the reference's embedding."""
    levels: float | None = None
    """Difference of pixels in grey levels. None if the file has no preprocessing."""
    mean_levels: float = 0.0
    """Mean difference of pixels in grey levels, of the image with the largest mean."""
    same_pixels: float = 0.0
    """Difference of logits between the file and PyTorch, on the file's pixels."""

    def __str__(self) -> str:
        text = (
            f"logits {self.logits:.1e}, probabilities {self.probabilities:.1e}, "
            f"embedding {self.embedding:.1e} of its largest"
        )
        if self.levels is None:
            return text
        return (
            f"{text}, pixels {self.levels:.2g} of 255 (mean {self.mean_levels:.2g}), "
            f"logits on the same pixels {self.same_pixels:.1e}"
        )


def pictures_to_check(paths: Sequence[Path] | None) -> list[np.ndarray]:
    """Return (H, W, 3) uint8 images from files and folders, at most MAX_IMAGES. None means drawn posters.

    Unreadable files are logged and left out. Raises UserError if there are no images.
    """
    if paths is None:
        with tempfile.TemporaryDirectory() as folder:
            draw_poster_set(Path(folder), 12)
            return _read(sorted(Path(folder, "images").glob("p*")))
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError("path-missing", f"--check: no file or folder {path}")
        below = (file for file in path.rglob("*") if is_image_name(file.name))
        found += sorted(below) if path.is_dir() else [path]
    if not found:
        raise UserError("images-none", f"--check: no {ENDINGS_TEXT} file in {', '.join(map(str, paths))}")
    spaced = [found[place * len(found) // MAX_IMAGES] for place in range(MAX_IMAGES)]
    pictures = _read(found if len(found) <= MAX_IMAGES else spaced)
    if not pictures:
        raise UserError("images-none", f"--check: none of {len(found)} files is a readable image")
    return pictures


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    pictures = []
    for path in paths:
        try:
            pictures.append(np.asarray(decode(path.read_bytes(), ANY)))
        except BadImage as bad:
            log.warning("--check: cannot read %s: %s", path, bad.reason)
    return pictures


def measure(run: Run, folder: ModelFolder, pictures: Sequence[np.ndarray], preprocess: bool) -> Differences:
    """Run an exported file and the model folder on the same images.

    With ``preprocess`` the file's input is the images themselves, in batches of equal size. Its output ``normalised``
    is compared, too, if it exists.
    """
    from PIL import Image

    folder.model.eval()
    squares = [folder.preprocessing.square(Image.fromarray(picture)) for picture in pictures]
    result = Differences(len(pictures))
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.shape if preprocess else (), []).append(number)
    # The largest group is run in all batch sizes. Its images repeat if there are too few.
    for rank, group in enumerate(sorted(groups.values(), key=len, reverse=True)):
        for batch in _batches(group, at_least=0 if rank else sum(BATCHES)):
            images = folder.preprocessing.normalize(torch.from_numpy(np.stack([squares[i] for i in batch])))
            given = np.stack([pictures[i] for i in batch]) if preprocess else images.contiguous().numpy()
            _compare(result, folder, images, run(given))
            result.batches.add(len(batch))
    return result


def _batches(numbers: list[int], at_least: int) -> Iterator[list[int]]:
    line = itertools.islice(itertools.cycle(numbers), max(len(numbers), at_least))
    sizes = itertools.chain(BATCHES, itertools.repeat(BATCHES[-1]))
    while batch := list(itertools.islice(line, next(sizes))):
        yield batch


def _compare(result: Differences, folder: ModelFolder, images: torch.Tensor, given: dict[str, np.ndarray]) -> None:
    with torch.inference_mode():
        logits = folder.model(images).float().numpy()
        embedding = backbone_features(folder.model, images).float().numpy()
    probabilities = folder.decisions.probabilities(logits)
    largest = max(float(np.abs(embedding).max()), 1e-12)
    result.logits = _worse(result.logits, given["logits"], logits)
    result.probabilities = _worse(result.probabilities, given["probabilities"], probabilities)
    result.embedding = _worse(result.embedding, given["embedding"] / largest, embedding / largest)
    if NORMALISED in given:
        levels = np.array(folder.preprocessing.std).reshape(3, 1, 1) * 255.0
        apart = np.abs(given[NORMALISED].astype(np.float64) - images.numpy()) * levels
        result.levels = max(result.levels or 0.0, float(apart.max()))
        result.mean_levels = max(result.mean_levels, float(apart.mean(axis=(1, 2, 3)).max()))
        with torch.inference_mode():
            same = folder.model(torch.from_numpy(given[NORMALISED])).float().numpy()
        result.same_pixels = _worse(result.same_pixels, given["logits"], same)


def _worse(before: float, given: np.ndarray, wanted: np.ndarray) -> float:
    """Return the larger of ``before`` and the largest difference. Infinity for other shapes or non-finite values."""
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return float("inf")
    return max(before, float(np.abs(given.astype(np.float64) - wanted).max()))


def require_parity(found: Differences, preprocess: bool, tolerance: float | None) -> None:
    """Raise UserError if the outputs of an exported file differ from its model by more than the tolerance."""
    limit = (TOLERANCE_PREPROCESS if preprocess else TOLERANCE) if tolerance is None else tolerance
    if not preprocess:
        same = {"logits": found.logits, "probabilities": found.probabilities, "embedding": found.embedding}
        what, value = max(same.items(), key=lambda part: part[1])
    elif found.levels is not None and not (
        found.levels <= MAX_LEVELS and found.mean_levels <= MEAN_LEVELS and found.same_pixels <= TOLERANCE
    ):
        raise UserError(
            "export-differs",
            f"nothing was exported: the file's pixels are up to {found.levels:.3g} grey levels from Pillow's (mean "
            f"{found.mean_levels:.2g}; allowed: {MAX_LEVELS:g} and {MEAN_LEVELS:g}), its logits on them "
            f"{found.same_pixels:.2g} from PyTorch's (allowed: {TOLERANCE:g}): export without --preprocess",
        )
    else:
        what, value = "probabilities", found.probabilities
    if not value <= limit:
        raise UserError(
            "export-differs",
            f"nothing was exported: {what} of the file and PyTorch differ by {value:.2g} at most, over the tolerance "
            f"of {limit:g}; try another --format or --opset, or allow more with --tolerance",
        )
