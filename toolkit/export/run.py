"""A model folder as one file for other runtimes, which gets its name only once it has said what the model says.

posters export --model RUN/model --format onnx --preprocess --check posters/      posters export -m RUN/model
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from shards.errors import UserError
from shards.storage.files import atomic_write
from shards.storage.leftovers import remove_dead_partials
from toolkit.export.network import OUTPUTS
from toolkit.export.onnx_preprocessing import NORMALISED
from toolkit.export.parity_check import Run, judge, measure, pictures_to_check
from toolkit.inference.onnx_runtime import open_exported, read_facts, run_session
from toolkit.model_folder.folder import ModelFolder, load_model_folder

if TYPE_CHECKING:
    import argparse

CPU = torch.device("cpu")
#: By format: file name in the model folder.
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2"}


def run_export(args: argparse.Namespace) -> int:
    """Export, check, and only then rename; returns the exit status."""
    if args.tolerance is not None and not args.tolerance > 0:
        raise UserError(f"--tolerance must be over 0, not {args.tolerance}")
    if args.format != "onnx" and (args.preprocess or args.opset is not None):
        raise UserError("--preprocess and --opset go with --format onnx")
    folder = load_model_folder(args.model)
    pictures = pictures_to_check(args.check)
    name = NAMES[args.format].replace(".", "-preprocess." if args.preprocess else ".")
    out: Path = args.out or args.model / name
    if out.is_dir():
        raise UserError(f"--out must be a file, and {out} is a folder: give {out / name}")
    remove_dead_partials(out.parent, escape(out.name))
    content, opener = _make(args, folder)
    with atomic_write(out) as stream:  # renamed when the block ends well, gone when it does not
        stream.write(content)
        stream.flush()
        found = measure(opener(Path(stream.name)), folder, pictures, args.preprocess)
        judge(found, args.preprocess, args.tolerance)
    runtime = "onnxruntime" if args.format == "onnx" else "torch.export"
    batches = ", ".join(map(str, sorted(found.batches)))
    print(f"max difference  {found}")
    print(f"checked         {found.images} images in batches of {batches}: {runtime} against PyTorch")
    print(f"exported        {out} ({len(content) / 1e6:.1f} MB)")
    return 0


def _make(args: argparse.Namespace, folder: ModelFolder) -> tuple[bytes, Callable[[Path], Run]]:
    """(the file's content, what opens a written file to run it)."""
    if args.format == "torch-export":
        from toolkit.export.torch_export import torch_export_bytes

        return torch_export_bytes(folder), open_torch_export
    from toolkit.export.onnx_export import onnx_bytes
    from toolkit.export.onnx_preprocessing import MIN_OPSET

    content = onnx_bytes(folder, args.preprocess, MIN_OPSET if args.opset is None else args.opset)
    return content, open_with_pixels if args.preprocess else open_onnx


def open_onnx(path: Path) -> Run:
    """A written ONNX file, run on the CPU."""
    session = open_exported(path, CPU)
    read_facts(session, path)
    return partial(run_session, session)


def open_with_pixels(path: Path) -> Run:
    """A written ONNX file that also gives the pixels between preprocessing and network."""
    import onnx
    from onnx import TensorProto, helper

    open_onnx(path)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, None))
    return partial(run_session, open_exported(model.SerializeToString(), CPU))


def open_torch_export(path: Path) -> Run:
    """A written ExportedProgram, run on the CPU."""
    from toolkit.export.torch_export import load_torch_export

    with open(path, "rb") as stream:
        network, _ = load_torch_export(stream)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(images))
        return {name: values.numpy() for name, values in zip(OUTPUTS, outputs, strict=True)}

    return run
