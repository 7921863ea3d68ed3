"""What the options of ``posters predict`` ask for, be it of a few images or of a whole set."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from shards.errors import UserError
from toolkit.device.defaults import autocast_dtype, rows_for
from toolkit.inference.forward import Forward, ForwardOptions
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction.formats import ENDINGS, FOLDER_FORMATS, FORMATS

if TYPE_CHECKING:
    import argparse

#: What people call a file by. Folders may have a dot in their names, too: ``predictions-0.5``.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}", re.IGNORECASE)


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for values that mean nothing."""
    if args.threshold is not None and not 0.0 <= args.threshold <= 1.0:
        raise UserError(f"--threshold must be from 0 to 1, not {args.threshold}")
    if args.batch_size < 0 or args.workers < 0:
        raise UserError("--batch-size and --workers must be 0 (automatic) or more")
    if args.onnx is not None and (args.compile or args.precision in ("fp16", "bf16")):
        raise UserError("--onnx runs the file as it was exported: leave --compile and --precision out")


def wants_a_folder(args: argparse.Namespace) -> bool:
    """Whether the results are a folder of files, not text or one file. Raises UserError where that is not clear."""
    output, is_folder = args.output, args.output is not None and args.output.is_dir()
    ending = "" if output is None or is_folder else output.suffix.lower()
    if args.shards is not None:
        if ending in ENDINGS:
            raise UserError(
                f"--shards writes a file per shard: name a folder for --out, not the file {output}"
            )
        return True
    if args.directory is None or output is None or args.format not in (None, *FOLDER_FORMATS):
        return False
    if args.format is None and ending not in ENDINGS and _ENDING.fullmatch(ending):
        raise _unknown_ending(output, " or a folder whose name does not end so")
    return ending not in ENDINGS


def file_format(output: Path | None, format: str | None) -> str:
    """How results that are not a folder are written: text, json, csv, jsonl, parquet. Raises UserError if unclear."""
    if output is None:
        if format is not None and not FORMATS[format].screen:
            raise UserError(
                f"--format {format} is not for the screen: give a file that ends in .{format}, or a folder for --out"
            )
        return format or "text"
    if output.is_dir():
        raise UserError(
            f"{output} is a folder; a few images' results go into one file, such as {output / 'x.csv'}"
        )
    by_ending = ENDINGS.get(output.suffix.lower())
    if format is None:
        if by_ending is None:
            raise _unknown_ending(output)
        return by_ending
    if by_ending not in (None, format):
        raise UserError(f"--format {format} does not fit the ending of {output}: leave one of them out")
    return format


def _unknown_ending(output: Path, otherwise: str = "") -> UserError:
    ending = f"the ending {output.suffix}" if output.suffix else "no ending"
    return UserError(
        f"{output} has {ending}, which names no format: give a file that ends in {', '.join(ENDINGS)}{otherwise}"
    )


def load_folder(path: Path, threshold: float | None) -> ModelFolder:
    """A model folder, with ``threshold`` (on calibrated probabilities) for every genre if it is given."""
    folder = load_model_folder(path)
    if threshold is not None:
        folder.decisions = folder.decisions.at(threshold)
    return folder


def onnx_path(args: argparse.Namespace, folder: ModelFolder) -> Path:
    """The exported file that ``--onnx`` asks for."""
    return Path(args.onnx) if args.onnx else folder.path / "model.onnx"


def forward_of(args: argparse.Namespace, folder: ModelFolder, accelerator: Accelerator) -> Forward:
    """The forward pass that the options ask for, on the accelerator's device. Raises UserError for an unfit --onnx."""
    options = ForwardOptions(args.channels_last, args.compile, args.tta, args.embeddings)
    if args.onnx is not None:
        from toolkit.inference.onnx_runtime import OnnxModel

        network = OnnxModel(onnx_path(args, folder), folder, accelerator.device)
        return Forward(network, folder.preprocessing, options=replace(options, channels_last=False))
    model = folder.model.to(accelerator.device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    rows = rows_for(args.batch_size, accelerator.device)
    return Forward(model, folder.preprocessing, autocast_dtype(accelerator), options, rows)
