"""Text detectors and fills by name: ours, one of their kind from a file, or one of the user's own."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np

from shards.errors import UserError, one_line
from shards.text.detector import DetectorOptions, TextDetector
from shards.text.inpaint import FILLS, RADIUS, Fill, surround
from shards.text.opencv import cv2


def make_detector(options: DetectorOptions) -> TextDetector:
    """The detector that ``options`` names. Raises UserError if it is missing or cannot be loaded."""
    name = options.detector
    if name != "rapidocr" and ":" in name and Path(name).suffix != ".onnx":
        return _custom(name)
    from shards.text.db_detector import DBDetector, packaged_model

    path = packaged_model() if name == "rapidocr" else Path(name)
    return DBDetector(path, options)


def _custom(name: str) -> TextDetector:
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a user's own code may raise anything; the line names it
        raise UserError(
            f"--detector {name} cannot be made: {type(error).__name__}: {one_line(error)}"
        ) from None
    name_of, looks = getattr(made, "name", None), getattr(made, "looks", None)
    described = isinstance(name_of, str) and isinstance(looks, int) and looks >= 1
    if not described or not callable(getattr(made, "detect", None)):
        raise UserError(
            f"--detector {name} gives a {type(made).__name__} without detect(), a name and looks of 1 or more"
        )
    return made


def make_fill(name: str, model: Path | None = None) -> Fill:
    """The fill of that name; with ``model``, an in-painting network (see inpaint_model.py). Raises UserError."""
    if model is not None:
        from shards.text.inpaint_model import FillModel

        return FillModel(model)
    if name not in FILLS:
        raise UserError(
            f"--fill {name!r} is not known; choose one of {', '.join(FILLS)}, or give --fill-model"
        )
    if name == "surround":
        return surround
    method = cv2().INPAINT_TELEA if name == "telea" else cv2().INPAINT_NS

    def inpaint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if mask.all() or not mask.any() or min(mask.shape) < 3:
            return surround(image, mask)  # OpenCV has nothing to start from
        # OpenCV takes masked pixels at the upper and left border for known ones (its issues 14722, 25389), and would
        # spread the text that lies there: it gets a picture that holds plausible colours there instead.
        return cv2().inpaint(surround(image, mask), mask.astype(np.uint8), RADIUS, method)

    return inpaint
