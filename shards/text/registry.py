"""The registry of text detectors: names, and the options of each detector. Fills are in inpaint.FILLS.

To add a detector, write a module with a dataclass of options and a callable that takes them, and add an entry here:
``--detector NAME:a=1,b=2`` then uses it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shards.errors import UserError, one_line
from shards.extras import load_object
from shards.schema import problem_of
from shards.text.detector import DetectorOptions, TextDetector
from shards.text.inpaint import FILLS, Fill
from shards.text.inpaint_model import FillModel


class Entry(NamedTuple):
    """A registered detector."""

    made_by: str  # MODULE:CALLABLE, which takes the options and returns a TextDetector
    options: type  # a dataclass; the fields of DetectorOptions are command-line options already


DETECTORS = {"rapidocr": Entry("shards.text.db_detector:DBDetector", DetectorOptions)}


def make_detector(options: DetectorOptions) -> TextDetector:
    """Create the detector that ``options`` name. Raises UserError if it is missing or cannot be loaded."""
    name, _, own = options.detector.partition(":")
    if entry := DETECTORS.get(name):
        return load_object(entry.made_by)(_options(entry.options, options, own))
    if ":" in options.detector and Path(options.detector).suffix != ".onnx":
        return _custom(options.detector)
    return load_object(DETECTORS["rapidocr"].made_by)(options)  # FILE.onnx of such a network


def _options(kind: type, options: DetectorOptions, own: str) -> Any:
    """Parse the detector's own options, ``a=1,b=2``, into its dataclass. Raises UserError if they do not fit."""
    given = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in own.split(",") if p)}
    names = [] if kind is DetectorOptions else [field.name for field in fields(kind)]
    if unknown := [name for name in given if name not in names]:
        has = f"its own options are {', '.join(names)}" if names else "it has no options of its own"
        raise UserError("option-unknown", f"--detector {options.detector}: unknown option {unknown[0]!r}; {has}")
    try:
        return options if kind is DetectorOptions else msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError("option-value", f"--detector {options.detector}: {problem_of(error)}") from None


def own_options(options: DetectorOptions) -> dict[str, str]:
    """Return the detector's own options as given, for reports and fingerprints; empty if there are none."""
    name, _, own = options.detector.partition(":")
    return {"detector_options": own} if name in DETECTORS and own else {}


def _custom(name: str) -> TextDetector:
    try:
        made = load_object(name)()
    except Exception as error:  # a user's code may raise anything
        message = f"--detector {name} cannot be created: {type(error).__name__}: {one_line(error)}"
        raise UserError("option-value", message) from None
    title, looks, detect = (getattr(made, wanted, None) for wanted in ("name", "looks", "detect"))
    if not (isinstance(title, str) and isinstance(looks, int) and looks >= 1 and callable(detect)):
        problem = f"returns a {type(made).__name__}; detect(), a text name and an integer looks >= 1 are needed"
        raise UserError("option-value", f"--detector {name} {problem}")
    return made


def make_fill(name: str, model: Path | None = None) -> Fill:
    """Return the fill ``name`` or, if given, the network ``model``. Raises UserError if it is unknown or unfit."""
    if model is not None:
        return FillModel(model)
    if name not in FILLS:
        remedy = f"choose one of {', '.join(FILLS)}, or give --fill-model"
        raise UserError("option-value", f"--fill {name!r} is unknown; {remedy}")
    return FILLS[name]
