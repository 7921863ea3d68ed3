"""Compare the outputs of an exported file with the outputs of its model, on images in batches of several sizes.

The model's outputs are computed as in `posters predict`: with Pillow, `Preprocessing`, PyTorch and `Decisions`.
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

#: Largest number of images for --check. If there are more, evenly spaced images are used.
MAX_IMAGES = 64
#: Batch sizes of the check, in this order. The last size repeats.
BATCHES = (1, 3, 8)
#: Tolerance of logits for the same input. Float32 sums in another order differ by 1e-6 to 1e-5. A difference of 1e-3
#: changes an uncalibrated probability by at most 0.00025. A missing layer or another GELU causes larger differences.
TOLERANCE = 1e-3
#: Tolerance of probabilities with --preprocess, where some pixels differ by 1 of 255 (onnx_preprocessing.py). In a test
#: with random weights, a fifth of the pixels differed by 1 and probabilities changed by 0.02. The two other limits with
#: --preprocess are stricter: MAX_LEVELS and MEAN_LEVELS for pixels, TOLERANCE for logits on the same pixels.
TOLERANCE_PREPROCESS = 0.05
#: Largest and mean allowed difference from Pillow's pixels (0 to 255). A shift by half a pixel is far over the limits.
MAX_LEVELS, MEAN_LEVELS = 3.0, 0.5

#: Function that runs an exported file: (n, 3, S, S) float32 or (n, H, W, 3) uint8 images → outputs by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass
class Differences:
    """Largest absolute differences between an exported file and its model over all images."""

    images: int
    batches: set[int] = field(default_factory=set)
    logits: float = 0.0
    probabilities: float = 0.0
    embedding: float = 0.0
    """Difference as a fraction of the largest absolute value in the model's embedding."""
    levels: float | None = None
    """Difference of pixels (0 to 255). None if the file has no preprocessing."""
    mean_levels: float = 0.0
    """Mean difference over the pixels (0 to 255) of an image."""
    same_pixels: float = 0.0
    """Difference of logits on equal pixels: the model gets the pixels that the file preprocessed."""

    def __str__(self) -> str:
        text = (
            f"logits {self.logits:.1e}, probabilities {self.probabilities:.1e}, "
            f"embedding {self.embedding:.1e} of its largest value"
        )
        if self.levels is None:
            return text
        return (
            f"{text}, pixels {self.levels:.2g} of 255 (mean {self.mean_levels:.2g}), "
            f"logits on the same pixels {self.same_pixels:.1e}"
        )


def pictures_to_check(paths: Sequence[Path] | None) -> list[np.ndarray]:
    """Return at most MAX_IMAGES (H, W, 3) uint8 images from files and folders. With None, return drawn posters.

    Unreadable files are logged and left out. Raises UserError if there are no images.
    """
    if paths is None:
        with tempfile.TemporaryDirectory() as folder:
            draw_poster_set(Path(folder), 12)
            return _read(sorted(Path(folder, "images").glob("p*")))
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError("path-missing", f"--check: there is no file or folder {path}")
        below = (file for file in path.rglob("*") if is_image_name(file.name))
        found += sorted(below) if path.is_dir() else [path]
    if not found:
        raise UserError("images-none", f"--check: there is no {ENDINGS_TEXT} file in {', '.join(map(str, paths))}")
    spaced = [found[k * len(found) // MAX_IMAGES] for k in range(MAX_IMAGES)]
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
    """Run an exported file (``run``) and its model on the same images.

    With ``preprocess``, the file gets the unchanged images. Images of equal size form batches. If ``run`` returns
    preprocessed pixels, the pixels are compared, too.
    """
    from PIL import Image

    folder.model.eval()
    squares = [folder.preprocessing.square(Image.fromarray(picture)) for picture in pictures]
    result = Differences(len(pictures))
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.shape if preprocess else (), []).append(number)
    # The largest group has batches of all sizes. Its images are repeated if there are too few.
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
    result.logits = _largest(result.logits, given["logits"], logits)
    result.probabilities = _largest(result.probabilities, given["probabilities"], probabilities)
    result.embedding = _largest(result.embedding, given["embedding"] / largest, embedding / largest)
    if NORMALISED in given:
        levels = np.array(folder.preprocessing.std).reshape(3, 1, 1) * 255.0
        apart = np.abs(given[NORMALISED].astype(np.float64) - images.numpy()) * levels
        result.levels = max(result.levels or 0.0, float(apart.max()))
        result.mean_levels = max(result.mean_levels, float(apart.mean(axis=(1, 2, 3)).max()))
        with torch.inference_mode():
            same = folder.model(torch.from_numpy(given[NORMALISED])).float().numpy()
        result.same_pixels = _largest(result.same_pixels, given["logits"], same)


def _largest(before: float, given: np.ndarray, wanted: np.ndarray) -> float:
    """Return the maximum of ``before`` and all differences. Infinity if ``given`` is not finite or shapes differ."""
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return float("inf")
    return max(before, float(np.abs(given.astype(np.float64) - wanted).max()))


def require_parity(found: Differences, preprocess: bool, tolerance: float | None) -> None:
    """Raise UserError if a difference is larger than the tolerance."""
    limit = (TOLERANCE_PREPROCESS if preprocess else TOLERANCE) if tolerance is None else tolerance
    if not preprocess:
        same = {"logits": found.logits, "probabilities": found.probabilities, "embedding": found.embedding}
        what, value = max(same.items(), key=lambda part: part[1])
    elif found.levels is not None and not (
        found.levels <= MAX_LEVELS and found.mean_levels <= MEAN_LEVELS and found.same_pixels <= TOLERANCE
    ):
        raise UserError(
            "export-differs",
            f"nothing was exported: pixels of the file and of Pillow differ by up to {found.levels:.3g} of 255 (limit "
            f"{MAX_LEVELS:g}), on average by {found.mean_levels:.2g} (limit {MEAN_LEVELS:g}). On equal pixels, logits "
            f"differ from PyTorch's by {found.same_pixels:.2g} (limit {TOLERANCE:g}). Export without --preprocess",
        )
    else:
        what, value = "probabilities", found.probabilities
    if not value <= limit:
        raise UserError(
            "export-differs",
            f"nothing was exported: {what} of the file and PyTorch differ by up to {value:.2g}, over the tolerance "
            f"of {limit:g}; try another --format or --opset, or allow more with --tolerance",
        )
