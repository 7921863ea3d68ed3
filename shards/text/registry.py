"""Text detectors by name: ours, one of its kind from a file, or one of the user's own."""

from __future__ import annotations

import importlib
from pathlib import Path

from shards.errors import UserError, one_line
from shards.text.detector import DetectorOptions, TextDetector


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
