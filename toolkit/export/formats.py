"""Formats of exported models. A new format is a module in this package and a line of FORMATS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Format:
    """A format for exported models.

    Its module has ``exported(folder, preprocess, opset)``, which returns the file's content, and
    ``opened(path, preprocess)``, which returns a Run.
    """

    module: str
    """Module of this package. It is imported for an export only, since `posters export --help` must not need torch."""
    file: str
    """File name in the model folder."""
    runtime: str
    """Name of the runtime, for messages."""


#: Formats by name. The first is the default.
FORMATS = {
    "onnx": Format("onnx_export", "model.onnx", "onnxruntime"),
    "torch-export": Format("torch_export", "model.pt2", "torch.export"),
}
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # choices of an option
