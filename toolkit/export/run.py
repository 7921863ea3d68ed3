"""A model folder as one file for other runtimes, which gets its name only once it has said what the model says.

posters export --model RUN/model --format onnx --preprocess --check posters/      posters export -m RUN/model
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from glob import escape
from pathlib import Path

import numpy as np
import torch

from shards.errors import UserError
from shards.storage.files import atomic_write
from shards.storage.leftovers import remove_dead_partials
from toolkit.export.network import OUTPUTS
from toolkit.export.onnx_preprocessing import NORMALISED
from toolkit.export.options import ExportOptions
from toolkit.export.parity_check import Run, judge, measure, pictures_to_check
from toolkit.inference.onnx_runtime import open_session, read_facts, run_session
from toolkit.model_folder.folder import ModelFolder, load_model_folder

CPU = torch.device("cpu")
#: By format: file name in the model folder.
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2"}


def run_export(options: ExportOptions) -> int:
    """Export, check, and only then rename; returns the exit status."""
    folder = load_model_folder(options.model)
    pictures = pictures_to_check(options.check)
    name = NAMES[options.format].replace(".", "-preprocess." if options.preprocess else ".")
    out: Path = options.out or options.model / name
    if out.is_dir():
        raise UserError(f"--out must be a file, and {out} is a folder: give {out / name}")
    remove_dead_partials(out.parent, escape(out.name))
    content, opener = _make(options, folder)
    with atomic_write(out) as stream:  # renamed when the block ends well, gone when it does not
        stream.write(content)
        stream.flush()
        found = measure(opener(Path(stream.name)), folder, pictures, options.preprocess)
        judge(found, options.preprocess, options.tolerance)
    runtime = "onnxruntime" if options.format == "onnx" else "torch.export"
    batches = ", ".join(map(str, sorted(found.batches)))
    print(f"max difference  {found}")
    print(f"checked         {found.images} images in batches of {batches}: {runtime} against PyTorch")
    print(f"exported        {out} ({len(content) / 1e6:.1f} MB)")
    return 0


def _make(options: ExportOptions, folder: ModelFolder) -> tuple[bytes, Callable[[Path], Run]]:
    """(the file's content, what opens a written file to run it)."""
    if options.format == "torch-export":
        from toolkit.export.torch_export import torch_export_bytes

        return torch_export_bytes(folder), open_torch_export
    from toolkit.export.onnx_export import onnx_bytes
    from toolkit.export.onnx_preprocessing import MIN_OPSET

    content = onnx_bytes(folder, options.preprocess, MIN_OPSET if options.opset is None else options.opset)
    return content, open_with_pixels if options.preprocess else open_onnx


def open_onnx(path: Path) -> Run:
    """A written ONNX file, run on the CPU."""
    session = open_session(path, CPU)
    read_facts(session, path)
    return partial(run_session, session)


def open_with_pixels(path: Path) -> Run:
    """A written ONNX file that also gives the pixels between preprocessing and network."""
    import onnx
    from onnx import TensorProto, helper

    open_onnx(path)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, None))
    return partial(run_session, open_session(model.SerializeToString(), CPU))


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
