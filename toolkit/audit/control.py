"""Where the control is painted: the same shapes as the text's, elsewhere on the same poster.

Each painted region is moved as a whole, neither turned nor scaled, to a place drawn from a generator whose key is
(seed, id, draw). Wanted of a place, in this order: it lies inside the picture and off the text; it is off the regions
placed before it; as much of it lies in the part of the poster that the model sees (`view_box`) as of the original,
to 5% of the region's area. Where no place is off the text, the one with the least overlap is taken and the overlap
is not painted: a control never hides text, so its area can be smaller than the text's but never larger.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shards.text.opencv import cv2
from toolkit.data.transforms.preprocessing import Box

#: More regions than this are joined with their neighbours: letters become words, words lines.
MAX_PIECES = 32
#: Longest side, in cells, of the grid on which places are looked for first.
GRID = 512
#: How far the visible part of a moved region may differ from the original's, as a share of the region.
VIEW_TOLERANCE = 0.05
#: Places tried against the regions placed before, until all places are looked at at once.
ATTEMPTS = 16
#: Arrangements of all regions tried until one is of equal area and equally visible.
MAX_ARRANGEMENTS = 8


@dataclass(frozen=True)
class Control:
    """One draw."""

    mask: np.ndarray
    """(h, w) bool: what to paint; nothing of it is text."""
    clear: bool
    """Every region found a place off the text and off the others."""


@dataclass(frozen=True)
class Piece:
    """A region that is moved as one."""

    shape: np.ndarray
    """(h, w) bool, cut out at its bounding box."""
    top: int
    left: int


def generator(seed: int, sample_id: str, draw: int) -> np.random.Generator:
    """Random numbers of one draw on one poster, whatever was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{draw}/{sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def visible(mask: np.ndarray, view: Box) -> int:
    """Pixels of the mask inside the view."""
    left, top, right, bottom = view
    return int(mask[top:bottom, left:right].sum())


def pieces_of(mask: np.ndarray) -> list[Piece]:
    """The connected regions of a mask, largest first; near ones are joined while there are too many."""
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
    """Where the regions of one poster can go. What does not depend on the draw is computed once."""

    def __init__(self, text: np.ndarray, view: Box) -> None:
        self.text, self.view = text, view
        self.pieces = pieces_of(text)
        self.step = -(-max(text.shape) // GRID)
        self.free = [self._free(piece, text) for piece in self.pieces]

    def draw(self, rng: np.random.Generator) -> Control:
        """Place every region. Regions can be in each other's way: the best of some tries counts."""
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
        """A random free place; None if there is none."""
        for _ in range(ATTEMPTS if len(free) else 0):
            y, x = _any_of(free, rng)
            if not (taken[y : y + piece.shape.shape[0], x : x + piece.shape.shape[1]] & piece.shape).any():
                return y, x
        free = self._free(piece, taken)
        return _any_of(free, rng) if len(free) else None

    def _free(self, piece: Piece, taken: np.ndarray) -> np.ndarray:
        """(n, 2) places (y, x) off ``taken``, of those the ones whose visible part is the most like the original's."""
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
        """(n,) pixels of the region inside the view, for each place."""
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
    """Pixels (cells, with a step above 1) that a shape shares with ``taken`` at each place of the grid.

    A cell counts as taken where any of its pixels is: no overlap on the grid means none in pixels.
    """
    rows = (taken.shape[0] - shape.shape[0]) // step + 1
    columns = (taken.shape[1] - shape.shape[1]) // step + 1
    cells, moved = _cells(taken, step), _cells(shape, step)
    # A shape that fills its last cells only partly may reach over the last cells of the picture.
    grow = (max(0, rows + moved.shape[0] - 1 - cells.shape[0]), max(0, columns + moved.shape[1] - 1 - cells.shape[1]))
    cells = np.pad(cells, ((0, grow[0]), (0, grow[1])))
    found: np.ndarray = cv2().matchTemplate(cells, moved, cv2().TM_CCORR)
    return found.reshape(cells.shape[0] - moved.shape[0] + 1, -1)[:rows, :columns]


def _cells(mask: np.ndarray, step: int) -> np.ndarray:
    """(h, w) bool → float32 on a coarser grid: 1 where any pixel of the cell is set."""
    if step == 1:
        return mask.astype(np.float32)
    padded = np.pad(mask, ((0, -mask.shape[0] % step), (0, -mask.shape[1] % step)))
    blocks = padded.reshape(len(padded) // step, step, -1, step)
    return blocks.max(axis=(1, 3)).astype(np.float32)
