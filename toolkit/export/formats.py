"""Formats of exported models, an entry for each: a new one is a module beside this one, and a line of FORMATS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Format:
    """How a model is exported.

    Its module has ``exported(folder, preprocess, opset)``, a file's content, and ``opened(path, preprocess)``, a Run.
    """

    module: str
    """Of this package, loaded when a model is exported: `posters export --help` needs no torch."""
    file: str
    """Its name in the model folder."""
    runtime: str
    """What runs it, for people."""


#: By name. The first is the default.
FORMATS = {
    "onnx": Format("onnx_export", "model.onnx", "onnxruntime"),
    "torch-export": Format("torch_export", "model.pt2", "torch.export"),
}
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # of an option
