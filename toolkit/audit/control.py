"""Masks of the controls. A control is the same poster with the shapes of its text painted at other places.

Each connected region of the text is moved to a random place, without rotation or scaling. A place must be inside the
picture, off the text and off the regions that were placed before. The view is the part of the poster that the model
uses. The area of a region inside the view should change by at most 5% of the whole area of the region. If no place is
free, the place with the smallest overlap is taken, and the overlap is not painted. So a control never hides text, and
its area is never larger than the area of the text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shards.text.opencv import cv2
from toolkit.data.transforms.preprocessing import Box

#: Maximum number of regions. If there are more, near regions are joined: letters to words, words to lines.
MAX_PIECES = 32
#: Maximum number of cells on the long side of a coarse grid. Free places are searched in this grid first.
GRID = 512
#: Maximum change of the area inside the view when a region is moved, as a share of the region's area.
VIEW_TOLERANCE = 0.05
#: Number of random places to try before all free places are computed.
ATTEMPTS = 16
#: Maximum number of attempts to place all regions.
MAX_ARRANGEMENTS = 8


@dataclass(frozen=True)
class Control:
    """The mask of one control."""

    mask: np.ndarray
    """(h, w) bool: the pixels to paint. No pixel is text."""
    clear: bool
    """Whether no region overlaps the text or another region."""


@dataclass(frozen=True)
class Piece:
    """A region that is moved as a whole."""

    shape: np.ndarray
    """(h, w) bool mask, cropped to the bounding box of the region."""
    top: int
    left: int


def generator(seed: int, sample_id: str, draw: int) -> np.random.Generator:
    """Return a random generator for control number ``draw`` of a poster. Equal arguments give equal numbers."""
    digest = hashlib.blake2b(f"{seed}/{draw}/{sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def visible(mask: np.ndarray, view: Box) -> int:
    """Return the number of mask pixels inside ``view`` (left, top, right, bottom), the crop of the model."""
    left, top, right, bottom = view
    return int(mask[top:bottom, left:right].sum())


def pieces_of(mask: np.ndarray) -> list[Piece]:
    """Return the connected regions of a mask, largest first. Join near regions if there are more than `MAX_PIECES`."""
    cv = cv2()
    joined, reach = mask.astype(np.uint8), 1
    count, names = cv.connectedComponents(joined, connectivity=8)
    while count - 1 > MAX_PIECES:
        joined = cv.dilate(joined, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        count, names = cv.connectedComponents(joined, connectivity=8)
        reach *= 2
    found = []
    for name in range(1, count):
        own = mask & (names == name)
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        found.append(Piece(own[top : rows[-1] + 1, left : columns[-1] + 1], top, left))
    return sorted(found, key=lambda piece: (-int(piece.shape.sum()), piece.top, piece.left))


class Places:
    """Possible places for the text regions of one poster. Values that all controls share are computed once."""

    def __init__(self, text: np.ndarray, view: Box) -> None:
        self.text, self.view = text, view
        self.pieces = pieces_of(text)
        self.step = -(-max(text.shape) // GRID)
        self.free = [self._free(piece, text) for piece in self.pieces]

    def draw(self, rng: np.random.Generator) -> Control:
        """Place all regions at random, several times. Return the best attempt, since regions can block each other."""
        area, wanted = int(self.text.sum()), visible(self.text, self.view)
        best, best_fault = self._try(rng), (0, 0)
        for number in range(MAX_ARRANGEMENTS):
            control = best if number == 0 else self._try(rng)
            off = abs(visible(control.mask, self.view) - wanted)
            fault = area - int(control.mask.sum()), off
            if number == 0 or fault < best_fault:
                best, best_fault = control, fault
            if best_fault[0] == 0 and best_fault[1] <= VIEW_TOLERANCE * area:
                break
        return best

    def _try(self, rng: np.random.Generator) -> Control:
        taken, clear = self.text.copy(), True
        for piece, free in zip(self.pieces, self.free, strict=True):
            height, width = piece.shape.shape
            place = self._pick(piece, free, taken, rng)
            if place is None:
                overlap = _overlap(taken, piece.shape, 1)
                place, clear = _any_of(np.argwhere(overlap <= overlap.min() + 0.5), rng), False
            y, x = place
            taken[y : y + height, x : x + width] |= piece.shape
        return Control(taken & ~self.text, clear)

    def _pick(
        self, piece: Piece, free: np.ndarray, taken: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """Return a random free place, or None if there is no free place."""
        for _ in range(ATTEMPTS if len(free) else 0):
            y, x = _any_of(free, rng)
            if not (taken[y : y + piece.shape.shape[0], x : x + piece.shape.shape[1]] & piece.shape).any():
                return y, x
        free = self._free(piece, taken)
        return _any_of(free, rng) if len(free) else None

    def _free(self, piece: Piece, taken: np.ndarray) -> np.ndarray:
        """Return (n, 2) free places (y, x) where the region's area inside the model's crop changes little."""
        for step in sorted({self.step, 1}, reverse=True):
            overlap = _overlap(taken, piece.shape, step)
            places = np.argwhere(overlap < 0.5) * step
            if len(places):
                break
        else:
            return places
        area = float(piece.shape.sum())
        wanted = self._visible(piece, np.array([[piece.top, piece.left]]))[0]
        off = np.abs(self._visible(piece, places) - wanted) / area
        return places[off <= max(VIEW_TOLERANCE, off.min())]

    def _visible(self, piece: Piece, places: np.ndarray) -> np.ndarray:
        """Return (n,) numbers of pixels of the region inside the model's crop, one for each of n places."""
        height, width = piece.shape.shape
        sums = np.zeros((height + 1, width + 1), np.int64)
        sums[1:, 1:] = piece.shape.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        left, top, right, bottom = self.view
        y0, y1 = np.clip(top - places[:, 0], 0, height), np.clip(bottom - places[:, 0], 0, height)
        x0, x1 = np.clip(left - places[:, 1], 0, width), np.clip(right - places[:, 1], 0, width)
        return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]


def _any_of(places: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    y, x = places[rng.integers(len(places))]
    return int(y), int(x)


def _overlap(taken: np.ndarray, shape: np.ndarray, step: int) -> np.ndarray:
    """Move ``shape`` over ``taken`` in steps of ``step`` pixels. Return the number of common cells at each place.

    A cell has ``step`` x ``step`` pixels, and is set if any of its pixels is set. Common pixels are in common cells.
    """
    rows = (taken.shape[0] - shape.shape[0]) // step + 1
    columns = (taken.shape[1] - shape.shape[1]) // step + 1
    cells, moved = _cells(taken, step), _cells(shape, step)
    # Add empty cells, since a shape that fills its last cells only partly can extend past the cells of the picture.
    grow = (max(0, rows + moved.shape[0] - 1 - cells.shape[0]), max(0, columns + moved.shape[1] - 1 - cells.shape[1]))
    cells = np.pad(cells, ((0, grow[0]), (0, grow[1])))
    found: np.ndarray = cv2().matchTemplate(cells, moved, cv2().TM_CCORR)
    return found.reshape(cells.shape[0] - moved.shape[0] + 1, -1)[:rows, :columns]


def _cells(mask: np.ndarray, step: int) -> np.ndarray:
    """Divide a mask into cells of ``step`` x ``step`` pixels. Return 1.0 for each cell with a set pixel, else 0.0."""
    if step == 1:
        return mask.astype(np.float32)
    padded = np.pad(mask, ((0, -mask.shape[0] % step), (0, -mask.shape[1] % step)))
    blocks = padded.reshape(len(padded) // step, step, -1, step)
    return blocks.max(axis=(1, 3)).astype(np.float32)
