"""Text detection with DB networks (differentiable binarization), run by onnxruntime on copies of several sizes.

The network outputs, for each pixel, the probability that the pixel is in the core of a piece of text. Connected pixels
above a threshold form a core. Cores are smaller than the text, because the network was trained with shrunk labels
(Liao et al. 2020, "Real-time scene text detection with differentiable binarization"). So each core is grown.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError, one_line
from shards.extras import require_extra
from shards.onnx_session import open_session
from shards.storage.files import sha256_file
from shards.text.detector import DetectorOptions, Region
from shards.text.opencv import cv2
from shards.text.reference_strip import reference_strip, strip_height

STRIDE = 32  # sides of the network's input are multiples of this
UNCLIP = 1.6  # a core grows by UNCLIP * area / perimeter (default of RapidOCR)
MIN_SIDE = 3  # a core with a shorter side, in pixels of the copy, is ignored as noise
#: A region that fills at least this share of its smallest rectangle becomes the rectangle. Others keep their shape.
STRAIGHT = 0.7
MAX_SIDE = 4096  # longest side of a copy in pixels, so that a very wide picture fits into memory


def packaged_model() -> Path:
    """Return the path of the detection network in RapidOCR's wheel. Raises UserError if the wheel has no network."""
    require_extra("clean", "text removal", "rapidocr", load=False)
    spec: Any = find_spec("rapidocr")
    found = sorted((Path(spec.origin).parent / "models").glob("*det*.onnx"))
    if not found:
        remedy = "pip install --upgrade 'rapidocr>=3.10'"
        raise UserError("environment", f"the installed rapidocr contains no detection network; {remedy}")
    return found[-1]


class DBDetector:
    """TextDetector with a DB network (differentiable binarization). The detector is not thread-safe."""

    def __init__(self, options: DetectorOptions) -> None:
        """Load the network chosen in ``options``. Raises UserError if the network is not a text detector."""
        path = packaged_model() if options.detector == "rapidocr" else Path(options.detector)
        self.options = options
        self.passes = len(options.scales)
        self._session = open_session(path, "detector model", "clean", device=options.device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3 or len(outputs) != 1:
            does = f"takes {[i.shape for i in inputs]} and gives {len(outputs)} outputs"
            wanted = "a text detector takes one (n, 3, h, w) image and gives one (n, 1, h, w) map"
            raise UserError("model-unfit", f"detector model {path} {does}; {wanted}")
        self._input = inputs[0].name
        self.name = f"{path.name} {sha256_file(path)[:12]}"

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        return [region for side in self.options.scales[index] for region in self.at(image, side)]

    def at(self, image: np.ndarray, side: int) -> list[Region]:
        """Return the regions found on a copy whose short side is ``side`` pixels."""
        height, width = image.shape[:2]
        scale = min(side / min(height, width), MAX_SIDE / max(height, width))
        copy_height, copy_width = (max(STRIDE, round(n * scale / STRIDE) * STRIDE) for n in (height, width))
        probability = self._probability(image, copy_height, copy_width)
        to_image = np.array([width / copy_width, height / copy_height], dtype=np.float32)
        regions = []
        for outline, letters, score in self._outlines(probability):
            points = np.clip(outline * to_image, 0, (width, height)).astype(np.float32)
            regions.append(Region(points, float(letters * to_image.mean()), score))
        return regions

    def _probability(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        cv = cv2()
        shrinks = height * width < image.shape[0] * image.shape[1]
        copy = cv.resize(image, (width, height), interpolation=cv.INTER_AREA if shrinks else cv.INTER_LINEAR)
        rows = strip_height(min(width, height)) if self.options.reference_strip else 0
        seen = np.concatenate([copy, reference_strip(width, rows)]) if rows else copy
        # the networks take channels in the order BGR, with values from -1 to 1
        planes = np.ascontiguousarray(seen[..., ::-1].transpose(2, 0, 1)[None], dtype=np.float32)
        planes /= 127.5
        planes -= 1.0
        try:
            (out,) = self._session.run(None, {self._input: planes})
        except Exception as error:  # onnxruntime has no error class of its own
            problem = f"failed on a {width}x{height} copy: {one_line(error)}"
            raise UserError("model-unfit", f"detector model {self.name} {problem}") from None
        if out.shape != (1, 1, *seen.shape[:2]):
            problem = f"gives {out.shape} for a picture of {seen.shape[1]}x{seen.shape[0]}"
            wanted = f"a text detector gives (1, 1, {seen.shape[0]}, {seen.shape[1]})"
            raise UserError("model-unfit", f"detector model {self.name} {problem}; {wanted}")
        return np.ascontiguousarray(out[0, 0, :height])

    def _outlines(self, probability: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
        """Return (outline, letter height, score) of each region. Lengths are in pixels of ``probability``."""
        cv = cv2()
        binary = (probability > self.options.pixel_threshold).astype(np.uint8)
        contours, _ = cv.findContours(binary, cv.RETR_EXTERNAL, cv.CHAIN_APPROX_SIMPLE)
        found = []
        for contour in contours:
            centre, (w, h), angle = cv.minAreaRect(contour)
            if min(w, h) < MIN_SIDE:
                continue
            x, y, columns, rows = cv.boundingRect(contour)
            core = np.zeros((rows, columns), np.uint8)
            cv.drawContours(core, [contour - (x, y)], -1, 1, cv.FILLED)
            score = cv.mean(probability[y : y + rows, x : x + columns], core)[0]
            if score < self.options.region_threshold:
                continue
            grow = w * h * UNCLIP / (2 * (w + h))
            if cv.countNonZero(core) >= STRAIGHT * w * h:
                outline = cv.boxPoints((centre, (w + 2 * grow, h + 2 * grow), angle))
                letters = min(w, h) + 2 * grow
            else:
                outline, letters = _grown(core, contour, (x, y))
            found.append((outline.astype(np.float32), float(letters), float(score)))
        return found


def _grown(core: np.ndarray, contour: Any, corner: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Grow the shape of a curved text by UNCLIP * area / perimeter. Return the outline and the letter height."""
    cv = cv2()
    area, perimeter = cv.countNonZero(core), max(1.0, cv.arcLength(contour, True))
    grow = max(1, round(area * UNCLIP / perimeter))
    padded = cv.copyMakeBorder(core, grow, grow, grow, grow, cv.BORDER_CONSTANT, value=0)
    disc = cv.getStructuringElement(cv.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    outlines, _ = cv.findContours(cv.dilate(padded, disc), cv.RETR_EXTERNAL, cv.CHAIN_APPROX_SIMPLE)
    largest = max(outlines, key=cv.contourArea)
    # A band of length l and height t has area l * t and perimeter about 2 * l.
    return largest[:, 0, :] + np.array(corner) - grow, 2 * area / perimeter + 2 * grow
