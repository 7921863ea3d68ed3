"""Paint over a mask, with the surrounding colours or with OpenCV's in-painting.

A fill is a function. It takes an (h, w, 3) uint8 RGB image and an (h, w) bool mask, and returns an image. A fill must
not change pixels outside the mask. The result must depend only on the image and the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from shards.text.opencv import cv2

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Radius, in pixels, of the neighbourhood that OpenCV's in-painting uses.
RADIUS = 5
#: Standard deviation, in pixels, of the blur that separates the colours around a hole from their grain.
GRAIN_SCALE = 1.5
#: Width, in pixels, of the border around a hole from which colours are taken. It is wider than the blur.
BORDER = 4 + int(4 * GRAIN_SCALE)
#: Largest strength of painted grain in grey levels. Noise cannot imitate stronger textures.
MAX_GRAIN = 3.0
#: Number of relaxation steps on each level of the pyramid. More steps make no visible difference.
RELAXATIONS = 12
#: Number of pixels that are processed at a time, to limit memory.
STRIP = 2_000_000


def surround(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill the mask with a smooth interpolation of the surrounding colours. Add grain as strong as the grain around it.

    The interpolation solves Laplace's equation on a pyramid, from coarse to fine. The colours around the mask are the
    boundary values (Perez, Gangnet, Blake 2003, "Poisson image editing", with a guidance field of zero). The grain,
    which is fine noise, comes from a random generator with a fixed seed.
    """
    if not mask.any():
        return image.copy()
    if mask.all():
        return np.full_like(image, 128)
    box = _surroundings(mask)
    part, hole = image[box], mask[box]
    field = np.empty((*hole.shape, 4), np.float32)
    for rows, seen in _strips(hole.shape, BORDER):
        colour = _colour(part[seen], hole[seen])
        grain = np.abs(part[seen] - colour).mean(axis=2)
        # The strength of grain is a mean of |x|, because edges near the mask change a mean of squares more.
        of_seen = np.concatenate([colour, np.minimum(grain, MAX_GRAIN)[..., None]], axis=2)
        field[rows] = of_seen[rows.start - seen.start :][: rows.stop - rows.start]
    field = membrane(field, hole)
    noise = np.random.default_rng(0).standard_normal(hole.shape, dtype=np.float32)
    # the mean of |x| of a normal variable is 0.8 standard deviations
    painted = field[hole][:, :3] + (noise[hole] * field[hole][:, 3] / 0.8)[:, None]
    out = image.copy()
    out[box][hole] = np.clip(np.rint(painted), 0, 255).astype(np.uint8)
    return out


def _colour(part: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Blur ``part`` to remove its grain. Pixels in ``hole`` are not used. Return (h, w, 3) float32."""
    cv = cv2()
    known = (~hole).astype(np.float32)
    weight = cv.GaussianBlur(known, (0, 0), GRAIN_SCALE)
    blurred = cv.GaussianBlur(part * known[..., None], (0, 0), GRAIN_SCALE)
    return np.asarray(blurred / np.maximum(weight, 1e-3)[..., None])


def membrane(field: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill the (h, w) bool ``hole`` of the (h, w, c) float32 ``field`` by harmonic interpolation, in place."""
    cv = cv2()
    if min(hole.shape) > 2 and hole.any():
        height, width = (hole.shape[0] + 1) // 2, (hole.shape[1] + 1) // 2
        size = width, height
        weight = cv.resize((~hole).astype(np.float32), size, interpolation=cv.INTER_AREA)
        field[hole] = 0
        coarse = cv.resize(field, size, interpolation=cv.INTER_AREA)
        coarse = coarse.reshape(height, width, -1) / np.maximum(weight, 1e-6)[..., None]
        coarse = membrane(coarse, weight < 1e-6)  # a coarse pixel is known if any pixel in it is known
        guess = cv.resize(coarse, hole.shape[::-1], interpolation=cv.INTER_LINEAR).reshape(field.shape)
        field[hole] = guess[hole]
    elif hole.all():
        return field
    else:
        field[hole] = field[~hole].mean(axis=0)
    if hole.any():
        _relax(field, hole)
    return field


def _relax(field: np.ndarray, hole: np.ndarray) -> None:
    """Set each pixel of the hole to the mean of its four neighbours, RELAXATIONS times, in strips to limit memory."""
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    above = field[:0]  # rows of the previous strip before it was changed
    for rows, seen in _strips(hole.shape, RELAXATIONS):
        part, of_part = field[seen].copy(), hole[seen]
        part[: rows.start - seen.start] = above
        above = field[max(0, rows.stop - RELAXATIONS) : rows.stop].copy()
        for _ in range(RELAXATIONS):
            mean = cv2().filter2D(part, -1, kernel, borderType=cv2().BORDER_REFLECT_101)
            part[of_part] = mean.reshape(part.shape)[of_part]
        field[rows] = part[rows.start - seen.start :][: rows.stop - rows.start]


def _strips(shape: tuple[int, ...], border: int) -> Iterator[tuple[slice, slice]]:
    """Yield two row slices per strip of about STRIP pixels: the strip, and the strip with ``border`` rows around it."""
    height = max(2 * border, STRIP // max(1, shape[1]))
    for start in range(0, shape[0], height):
        stop = min(start + height, shape[0])
        yield slice(start, stop), slice(max(0, start - border), min(stop + border, shape[0]))


def _surroundings(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # The end of a slice may be outside of the picture.
    top, left = max(0, int(rows[0]) - BORDER), max(0, int(columns[0]) - BORDER)
    return np.s_[top : int(rows[-1]) + 1 + BORDER, left : int(columns[-1]) + 1 + BORDER]


def opencv(image: np.ndarray, mask: np.ndarray, method: str) -> np.ndarray:
    """Fill the mask with OpenCV's INPAINT_TELEA (Telea 2004) or INPAINT_NS (Bertalmio, Bertozzi, Sapiro 2001)."""
    plausible = surround(image, mask)
    if mask.all() or not mask.any() or min(mask.shape) < 3:
        return plausible  # OpenCV needs known pixels around the mask
    # OpenCV treats masked pixels at the upper and left border as known (its issues 14722, 25389) and would spread
    # text from these pixels. So the input of OpenCV is the result of ``surround``, which has no text.
    return np.asarray(cv2().inpaint(plausible, mask.astype(np.uint8), RADIUS, getattr(cv2(), method)))


#: The registry of fills: value of ``--fill`` -> function. To add a fill, write a function and add an entry.
FILLS: dict[str, Fill] = {
    "surround": surround,
    "telea": partial(opencv, method="INPAINT_TELEA"),
    "ns": partial(opencv, method="INPAINT_NS"),
}
