"""Paint over a mask: from the colours around it, by OpenCV's in-painting, or by a user's network.

A fill is a function (image, mask) → image: image (h, w, 3) uint8 RGB, mask (h, w) bool. Pixels outside of the mask
are returned as they were; the result is a function of both arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from shards.text.opencv import cv2

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Pixels around a hole that OpenCV's in-painting looks at.
RADIUS = 5
#: Standard deviation in pixels of the blur that splits the surroundings into colour and grain.
GRAIN_SCALE = 1.5
#: Pixels around a hole that colours are taken from: over the reach of that blur.
BORDER = 4 + int(4 * GRAIN_SCALE)
#: Grain is painted up to this strength (grey levels): stronger texture is structure, and noise would not look like it.
MAX_GRAIN = 3.0
#: Relaxation steps on each level of the pyramid; more change nothing that can be seen.
RELAXATIONS = 12
#: Pixels that are worked on at a time.
STRIP = 2_000_000


def surround(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The colours of the surroundings, stretched over the hole like a membrane, with the grain of the surroundings.

    The membrane solves Laplace's equation with the colours around the hole as boundary (Perez, Gangnet, Blake 2003,
    "Poisson image editing", with a guidance field of zero), coarse to fine on a pyramid. On a gradient it is the
    gradient, where one mean colour would leave a bar. Grain is drawn from a generator with a fixed seed.
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
        # Means of |x| are less moved by an edge that crosses the border than means of squares.
        of_seen = np.concatenate([colour, np.minimum(grain, MAX_GRAIN)[..., None]], axis=2)
        field[rows] = of_seen[rows.start - seen.start :][: rows.stop - rows.start]
    field = membrane(field, hole)
    noise = np.random.default_rng(0).standard_normal(hole.shape, dtype=np.float32)
    # mean |x| of a normal variable is 0.8 standard deviations
    painted = field[hole][:, :3] + (noise[hole] * field[hole][:, 3] / 0.8)[:, None]
    out = image.copy()
    out[box][hole] = np.clip(np.rint(painted), 0, 255).astype(np.uint8)
    return out


def _colour(part: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32: ``part`` without its grain, from the pixels outside of ``hole``."""
    cv = cv2()
    known = (~hole).astype(np.float32)
    weight = cv.GaussianBlur(known, (0, 0), GRAIN_SCALE)
    blurred = cv.GaussianBlur(part * known[..., None], (0, 0), GRAIN_SCALE)
    return np.asarray(blurred / np.maximum(weight, 1e-3)[..., None])


def membrane(field: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Replace ``hole``, (h, w) bool, of ``field``, (h, w, c) float32, by the harmonic interpolation of the others."""
    cv = cv2()
    if min(hole.shape) > 2 and hole.any():
        height, width = (hole.shape[0] + 1) // 2, (hole.shape[1] + 1) // 2
        size = width, height
        weight = cv.resize((~hole).astype(np.float32), size, interpolation=cv.INTER_AREA)
        field[hole] = 0
        coarse = cv.resize(field, size, interpolation=cv.INTER_AREA)
        coarse = coarse.reshape(height, width, -1) / np.maximum(weight, 1e-6)[..., None]
        coarse = membrane(coarse, weight < 1e-6)  # a coarse pixel with anything known in it is known
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
    """Make each pixel of the hole the mean of its four neighbours, RELAXATIONS times; the same bits in any strips."""
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    above = field[:0]  # rows of the strip before, as they were before it was changed
    for rows, seen in _strips(hole.shape, RELAXATIONS):
        part, of_part = field[seen].copy(), hole[seen]
        part[: rows.start - seen.start] = above
        above = field[max(0, rows.stop - RELAXATIONS) : rows.stop].copy()
        for _ in range(RELAXATIONS):
            mean = cv2().filter2D(part, -1, kernel, borderType=cv2().BORDER_REFLECT_101)
            part[of_part] = mean.reshape(part.shape)[of_part]
        field[rows] = part[rows.start - seen.start :][: rows.stop - rows.start]


def _strips(shape: tuple[int, ...], border: int) -> Iterator[tuple[slice, slice]]:
    """The rows of a picture in strips of some STRIP pixels, which bound the memory; and with ``border`` rows around."""
    height = max(2 * border, STRIP // max(1, shape[1]))
    for start in range(0, shape[0], height):
        stop = min(start + height, shape[0])
        yield slice(start, stop), slice(max(0, start - border), min(stop + border, shape[0]))


def _surroundings(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of the mask's bounding box with a border that the colours are taken from."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # A slice may end behind the picture.
    top, left = max(0, int(rows[0]) - BORDER), max(0, int(columns[0]) - BORDER)
    return np.s_[top : int(rows[-1]) + 1 + BORDER, left : int(columns[-1]) + 1 + BORDER]


def opencv(image: np.ndarray, mask: np.ndarray, method: str) -> np.ndarray:
    """OpenCV's in-painting: INPAINT_TELEA after Telea 2004, INPAINT_NS after Bertalmio, Bertozzi, Sapiro 2001."""
    plausible = surround(image, mask)
    if mask.all() or not mask.any() or min(mask.shape) < 3:
        return plausible  # OpenCV has nothing to start from
    # OpenCV takes masked pixels at the upper and left border for known ones (its issues 14722, 25389), and would
    # spread the text that lies there: it gets a picture that holds plausible colours there instead.
    return np.asarray(cv2().inpaint(plausible, mask.astype(np.uint8), RADIUS, getattr(cv2(), method)))


#: The registry of fills, by what ``--fill`` takes. A new one is a function and an entry.
FILLS: dict[str, Fill] = {
    "surround": surround,
    "telea": partial(opencv, method="INPAINT_TELEA"),
    "ns": partial(opencv, method="INPAINT_NS"),
}
