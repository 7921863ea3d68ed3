"""Formats of exported models. To add a format, add a module to this package and an entry to FORMATS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Format:
    """A format of exported models."""

    module: str
    """Name of a module in this package with two functions. ``exported(folder, preprocess, opset)`` returns the content
    of the file. ``opened(path, preprocess)`` returns a function that runs the file (parity_check.Run)."""
    file: str
    """Default name of the file in the model folder."""
    runtime: str
    """Name of the runtime for messages."""


#: Formats by name. Only an export imports the module, so `posters export --help` does not need torch.
FORMATS = {
    "onnx": Format("onnx_export", "model.onnx", "onnxruntime"),
    "torch-export": Format("torch_export", "model.pt2", "torch.export"),
}
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # choices of an option
