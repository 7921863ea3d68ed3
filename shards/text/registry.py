"""The registry of text detectors: what a name stands for, and its own options. Fills are in inpaint.FILLS.

A new detector is a module with a dataclass of its options and a callable that makes it from them, and an entry here:
``--detector NAME --detector-options a=1,b=2`` then finds text with it.
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


class Entry(NamedTuple):
    """What a name stands for."""

    made_by: str
    """MODULE:CALLABLE, which takes the options and returns a TextDetector."""
    options: type
    """A dataclass. Of DetectorOptions all fields are options of the command line already."""


DETECTORS = {"rapidocr": Entry("shards.text.db_detector:db_detector", DetectorOptions)}


def make_detector(options: DetectorOptions) -> TextDetector:
    """The detector that ``options`` names. Raises UserError if it is missing or cannot be loaded."""
    name, own = options.detector, _parsed(options.detector_options)
    if name not in DETECTORS and ":" in name and Path(name).suffix != ".onnx":
        return _custom(name, own)
    entry = DETECTORS.get(name, DETECTORS["rapidocr"])  # a file is of that kind
    return _named(entry.made_by)(_options(entry.options, options, own))


def _parsed(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise UserError(f"--detector-options takes NAME=VALUE,NAME=VALUE, not {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _options(kind: type, options: DetectorOptions, own: dict[str, str]) -> Any:
    names = [] if kind is DetectorOptions else [field.name for field in fields(kind)]
    if unknown := [name for name in own if name not in names]:
        has = f"its own options are {', '.join(names)}" if names else "it has no options of its own"
        raise UserError(f"--detector-options: {options.detector} has no {unknown[0]!r}; {has}")
    try:
        return options if kind is DetectorOptions else msgspec.convert(own, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"--detector-options: {problem_of(error)}") from None


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _custom(name: str, own: dict[str, str]) -> TextDetector:
    try:
        made = _named(name)(**own)
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
    return FILLS[name]
