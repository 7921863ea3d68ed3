"""The exported network, and the metadata of an exported file. All formats export the same network."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from toolkit.device.compat import change_class
from toolkit.model_folder.folder import ModelFolder
from toolkit.models.heads import logits_and_features
from toolkit.models.last_layer import Float32Linear

OUTPUTS = ("logits", "probabilities", "embedding")
#: Loggers of the exporters. They log every step.
NOISY = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")


class ExportNetwork(nn.Module):
    """The network of a model folder with its calibration, in evaluation mode and float32."""

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__()
        self.model = copy.deepcopy(folder.model).to("cpu", torch.float32).eval()
        for module in self.model.modules():
            if type(module) is Float32Linear:
                # Everything is float32 here, so exporters do not need the autocast code of Float32Linear.
                change_class(module, nn.Linear)
        self.scale: torch.Tensor
        self.bias: torch.Tensor
        self.register_buffer("scale", torch.from_numpy(folder.decisions.scale).float())
        self.register_buffer("bias", torch.from_numpy(folder.decisions.bias).float())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, 3, S, S) normalised images → (n, G) logits, (n, G) calibrated probabilities, (n, F) embeddings."""
        logits, embedding = logits_and_features(self.model, images)
        return logits, torch.sigmoid(self.scale * logits + self.bias), embedding


def facts(folder: ModelFolder, preprocess: bool, opset: int | None) -> dict[str, Any]:
    """Return the metadata of an exported file, in JSON types."""
    return {
        "architecture": folder.config["architecture"],
        "genres": list(folder.labels.genres),
        "labels_fingerprint": folder.labels.fingerprint,
        "thresholds": folder.decisions.thresholds.tolist(),
        "decisions": folder.decisions.fingerprint,
        "weights_sha256": folder.fingerprint,
        **{key: getattr(folder.preprocessing, key) for key in ("image_size", "fit", "crop_pct", "mean", "std")},
        "preprocess": preprocess,
        "opset": opset,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn off the log messages and warnings of the exporters. Errors are raised as exceptions."""
    loggers = [logging.getLogger(name) for name in NOISY]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
