"""The registry of text detectors: what a name stands for, and its own options. Fills are in inpaint.FILLS.

A new detector is a module with a dataclass of its options and a callable that makes it from them, and an entry here:
``--detector NAME:a=1,b=2`` then finds text with it.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shards.errors import UserError, one_line
from shards.schema import problem_of
from shards.text.detector import DetectorOptions, TextDetector
from shards.text.inpaint import FILLS, Fill
from shards.text.inpaint_model import FillModel


class Entry(NamedTuple):
    """What a name stands for."""

    made_by: str  # MODULE:CALLABLE, which takes the options and returns a TextDetector
    options: type  # a dataclass; of DetectorOptions all fields are options of the command line already


DETECTORS = {"rapidocr": Entry("shards.text.db_detector:DBDetector", DetectorOptions)}


def make_detector(options: DetectorOptions) -> TextDetector:
    """The detector that ``options`` names. Raises UserError if it is missing or cannot be loaded."""
    name, _, own = options.detector.partition(":")
    if entry := DETECTORS.get(name):
        return _named(entry.made_by)(_options(entry.options, options, own))
    if ":" in options.detector and Path(options.detector).suffix != ".onnx":
        return _custom(options.detector)
    return _named(DETECTORS["rapidocr"].made_by)(options)  # a file of that kind


def _options(kind: type, options: DetectorOptions, own: str) -> Any:
    """The entry's options: ``a=1,b=2`` as its dataclass has them. Raises UserError."""
    given = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in own.split(",") if p)}
    names = [] if kind is DetectorOptions else [field.name for field in fields(kind)]
    if unknown := [name for name in given if name not in names]:
        has = f"its own options are {', '.join(names)}" if names else "it has no options of its own"
        raise UserError("option-unknown", f"--detector {options.detector}: there is no {unknown[0]!r}; {has}")
    try:
        return options if kind is DetectorOptions else msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError("option-value", f"--detector {options.detector}: {problem_of(error)}") from None


def own_options(options: DetectorOptions) -> dict[str, str]:
    """What of an entry's own options is chosen, for reports and fingerprints."""
    name, _, own = options.detector.partition(":")
    return {"detector_options": own} if name in DETECTORS and own else {}


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _custom(name: str) -> TextDetector:
    try:
        made = _named(name)()
    except Exception as error:  # a user's own code may raise anything; the line names it
        message = f"--detector {name} cannot be made: {type(error).__name__}: {one_line(error)}"
        raise UserError("option-value", message) from None
    title, looks, detect = (getattr(made, wanted, None) for wanted in ("name", "looks", "detect"))
    if not (isinstance(title, str) and isinstance(looks, int) and looks >= 1 and callable(detect)):
        problem = f"gives a {type(made).__name__} without detect(), a name and looks of 1 or more"
        raise UserError("option-value", f"--detector {name} {problem}")
    return made


def make_fill(name: str, model: Path | None = None) -> Fill:
    """The fill of that name; with ``model``, an in-painting network (see inpaint_model.py). Raises UserError."""
    if model is not None:
        return FillModel(model)
    if name not in FILLS:
        remedy = f"choose one of {', '.join(FILLS)}, or give --fill-model"
        raise UserError("option-value", f"--fill {name!r} is not known; {remedy}")
    return FILLS[name]
