"""The registry of text detectors and their options. The registry of fills is inpaint.FILLS.

To add a detector, write a dataclass of options and a callable that takes the options and returns a TextDetector. Then
add an entry to DETECTORS. ``--detector NAME:a=1,b=2`` uses the new detector.
"""

from __future__ import annotations

import logging
import multiprocessing
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shards.errors import UserError, one_line
from shards.extras import load_object
from shards.schema import problem_of
from shards.text.detector import DetectorOptions, TextDetector
from shards.text.inpaint import FILLS, Fill
from shards.text.inpaint_model import FillModel

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A registered detector."""

    made_by: str  # MODULE:CALLABLE, which takes the options and returns a TextDetector
    options: type  # dataclass of the detector's own options; DetectorOptions if it has none


DETECTORS = {"rapidocr": Entry("shards.text.db_detector:DBDetector", DetectorOptions)}


def make_detector(options: DetectorOptions) -> TextDetector:
    """Create the detector of the given options. Raises UserError if the detector is missing or cannot be loaded."""
    name, _, own = options.detector.partition(":")
    if entry := DETECTORS.get(name):
        return load_object(entry.made_by)(_options(entry.options, options, own))
    if ":" in options.detector and Path(options.detector).suffix != ".onnx":
        return _custom(options.detector)
    return load_object(DETECTORS["rapidocr"].made_by)(options)  # the path of an ONNX file


def _options(kind: type, options: DetectorOptions, own: str) -> Any:
    """Convert a detector's own options, ``a=1,b=2``, to the dataclass ``kind``. Raises UserError for wrong options."""
    given = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in own.split(",") if p)}
    names = [] if kind is DetectorOptions else [field.name for field in fields(kind)]
    if unknown := [name for name in given if name not in names]:
        has = f"the detector takes {', '.join(names)}" if names else "the detector has no options of its own"
        raise UserError("option-unknown", f"--detector {options.detector}: unknown option {unknown[0]!r}; {has}")
    try:
        return options if kind is DetectorOptions else msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError("option-value", f"--detector {options.detector}: {problem_of(error)}") from None


def own_options(options: DetectorOptions) -> dict[str, str]:
    """Return the detector's own options, for reports and fingerprints. The dict is empty if there are none."""
    name, _, own = options.detector.partition(":")
    return {"detector_options": own} if name in DETECTORS and own else {}


def _custom(name: str) -> TextDetector:
    try:
        made = load_object(name)()
    except Exception as error:  # a user's code may raise anything
        message = f"--detector {name} cannot be created: {type(error).__name__}: {one_line(error)}"
        raise UserError("option-value", message) from None
    title, passes, detect = getattr(made, "name", None), passes_of(made), getattr(made, "detect", None)
    if not (isinstance(title, str) and isinstance(passes, int) and passes >= 1 and callable(detect)):
        problem = f"returns a {type(made).__name__}; it must have detect(), a text `name` and an integer `passes` >= 1"
        raise UserError("option-value", f"--detector {name} {problem}")
    return made


def passes_of(detector: Any) -> Any:
    """Return the number of passes of a detector. Warn once if the detector has the old attribute name ``looks``."""
    passes = getattr(detector, "passes", None)
    if not isinstance(passes, int) and hasattr(detector, "looks"):
        _warn_of_looks(type(detector).__qualname__)
        return detector.looks
    return passes


@cache
def _warn_of_looks(name: str) -> None:
    if multiprocessing.parent_process() is None:  # the main process warns for all its workers
        log.warning("text detector %s has the attribute `looks`; rename the attribute to `passes`", name)


def make_fill(name: str, model: Path | None = None) -> Fill:
    """Return the fill ``name``, or the network ``model`` if given. Raises UserError if the fill is not usable."""
    if model is not None:
        return FillModel(model)
    if name not in FILLS:
        remedy = f"choose one of {', '.join(FILLS)}, or give --fill-model"
        raise UserError("option-value", f"--fill {name!r} is unknown; {remedy}")
    return FILLS[name]
