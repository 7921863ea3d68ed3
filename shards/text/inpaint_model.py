"""Paint over a mask with a user's in-painting network from an ONNX file.

The network takes an image (n, 3, h, w) and a mask (n, 1, h, w), both float32, and returns an image of the same size. If
h and w are fixed in the file, the picture is resized to that size and back. Values range from 0 to 1 or from 0 to 255.
A trial with a grey picture shows which range the network uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError, one_line
from shards.onnx_session import open_session
from shards.text.opencv import cv2

MULTIPLE = 8  # if h and w are free, sides are multiples of this: most networks halve their input three times
PROBE = 64  # side of the trial picture in pixels if h and w are free


class FillModel:
    """A fill (see ``inpaint.Fill``) with a network. The network's output outside the mask is not used."""

    def __init__(self, path: Path) -> None:
        """Load the network and try it on a grey picture. Raises UserError if it is not an in-painting network."""
        self.path = path
        self._session = open_session(path, "fill model", "clean")
        inputs = self._session.get_inputs()
        by_channels = {i.shape[1]: i for i in inputs if len(i.shape) == 4}
        if len(inputs) != 2 or set(by_channels) != {1, 3}:
            takes = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            wanted = "an in-painting network takes an image (n, 3, h, w) and a mask (n, 1, h, w)"
            raise UserError("model-unfit", f"fill model {path} takes {takes}; {wanted}")
        image, mask = by_channels[3], by_channels[1]
        if image.type != "tensor(float)" or mask.type != "tensor(float)":
            takes = f"{image.type} and {mask.type}; both must be tensor(float)"
            raise UserError("model-unfit", f"fill model {path} takes {takes}")
        self._names = image.name, mask.name
        height, width = image.shape[2:]
        self._size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        self._takes, self._gives = self._ranges()

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            return image.copy()
        cv = cv2()
        height, width = mask.shape
        size = self._size or tuple(-(-n // MULTIPLE) * MULTIPLE for n in (width, height))
        seen = cv.resize(image, size, interpolation=cv.INTER_AREA if size[0] < width else cv.INTER_LINEAR)
        # Area interpolation makes a pixel of a smaller mask positive if it covers any masked pixel.
        shrunk = size[0] < width or size[1] < height
        method = cv.INTER_AREA if shrunk else cv.INTER_NEAREST_EXACT
        hole = cv.resize(mask.astype(np.float32), size, interpolation=method)
        painted = self._run(seen.astype(np.float32) * (self._takes / 255.0), (hole > 0).astype(np.float32))
        levels = np.clip(np.rint(painted * (255.0 / self._gives)), 0, 255).astype(np.uint8)
        levels = cv.resize(levels, (width, height), interpolation=cv.INTER_LINEAR)
        out = image.copy()
        out[mask] = levels[mask]
        return out

    def _run(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        feed = {self._names[0]: planes, self._names[1]: mask[None, None]}
        try:
            out: Any = self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime has no error class of its own
            problem = f"failed on a {mask.shape[1]}x{mask.shape[0]} picture: {one_line(error)[:300]}"
            raise UserError("model-unfit", f"fill model {self.path} {problem}") from None
        if out.shape != planes.shape:
            problem = f"gives {tuple(out.shape)} for an image of {tuple(planes.shape)}"
            wanted = "an in-painting network must keep the image's shape"
            raise UserError("model-unfit", f"fill model {self.path} {problem}; {wanted}")
        if not np.isfinite(out).all():
            raise UserError("not-finite", f"fill model {self.path} gives values that are not finite numbers")
        return out[0].astype(np.float32).transpose(1, 2, 0)

    def _ranges(self) -> tuple[float, float]:
        """Return white levels (1 or 255) of input and output. With them, the network fills a grey picture with grey."""
        width, height = self._size or (PROBE, PROBE)
        hole = np.zeros((height, width), np.float32)
        hole[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None] = 1
        errors: dict[tuple[float, float], float] = {}
        for takes in (1.0, 255.0):
            grey = np.full((height, width, 3), 0.5 * takes, np.float32)
            out = self._run(grey, hole)[hole > 0]  # outside of the hole, many networks copy their input
            for gives in (takes, 256.0 - takes):
                errors[takes, gives] = abs(float(out.mean()) / gives - 0.5)
        best = min(errors.values())
        # If several ranges fit, the first is used: 0..1 is the most common.
        return next(ranges for ranges, error in errors.items() if error <= best + 0.02)
