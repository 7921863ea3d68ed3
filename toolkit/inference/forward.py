"""The forward pass of prediction and evaluation, from pixels to logits and embeddings.

    (n, S, S, 3) uint8 pixels ─ normalise ─→ network (autocast, channels_last, compiled if set) ─→ logits, embedding
                              └ mirrored ──→ again with --tta flip; the two outputs are averaged

On a GPU, a forward pass only queues its kernels and the copy of its outputs to the host. ``ForwardOutputs.arrays``
waits for the copy. Callers use it after they have queued the next batch. `score` copies the outputs of several batches
at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import UserError
from toolkit.config.options import ForwardOptions
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.distributed.fsdp import is_sharded
from toolkit.models.heads import logits_and_features

#: (n, 3, S, S) normalised pixels → (n, G) logits, and (n, F) inputs of the classifier or None if not requested.
Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class ForwardOutputs:
    """Outputs for one batch or several. The copy of the outputs to the host may still be in progress."""

    outputs: list[torch.Tensor]
    """(n, G) logits and, if requested, (n, F) embeddings, as float32 on the host."""
    _ready: Any = None

    @classmethod
    def of(cls, batches: Sequence[list[torch.Tensor]]) -> ForwardOutputs:
        """Join the outputs of batches (`Forward.on_device`) and start to copy them to the host."""
        joined = batches[0] if len(batches) == 1 else [torch.cat(parts) for parts in zip(*batches, strict=True)]
        if not joined[0].is_cuda:
            return cls(joined)
        # With non_blocking, torch copies to pinned memory, and the next batch can be queued during the copy.
        host = [values.to("cpu", non_blocking=True) for values in joined]
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(joined[0].device))
        return cls(host, ready)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return logits and embeddings (None if not requested) as numpy arrays. Waits for the copy to the host."""
        if self._ready is not None:
            self._ready.synchronize()
        logits, *embeddings = (values.numpy() for values in self.outputs)
        return logits, embeddings[0] if embeddings else None


class TorchNetwork(nn.Module):
    """A timm model as a Network. The head (classifier) comes from this toolkit or from timm."""

    def __init__(self, model: nn.Module, embeddings: bool) -> None:
        super().__init__()
        self.model, self.embeddings = model, embeddings

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return logits_and_features(self.model, images) if self.embeddings else (self.model(images), None)


class Forward:
    """Run a Network on batches of pixels."""

    def __init__(
        self,
        network: nn.Module | Network,
        preprocessing: Preprocessing,
        dtype: torch.dtype = torch.float32,
        options: ForwardOptions = ForwardOptions(),
        full_batch: int = 0,
    ) -> None:
        """``network``: a timm model on its device and in evaluation mode, or another Network.
        ``dtype``: the type that autocast uses for matrix products and convolutions. float32 disables autocast.

        With ``options.compile``, batches are padded to ``full_batch`` rows, because each shape is compiled separately.
        """
        # If FSDP gathers sharded weights in inference mode, the weights cannot be trained afterwards.
        self.grad_mode = torch.no_grad if is_sharded(network) else torch.inference_mode
        module = TorchNetwork(network, options.embeddings) if isinstance(network, nn.Module) else network
        self.network: Network = torch.compile(module) if options.compile else module
        self.preprocessing, self.dtype, self.options = preprocessing, dtype, options
        self.full_batch = full_batch if options.compile else 0
        self.format = torch.channels_last if options.channels_last else torch.contiguous_format

    def compiled(self, full_batch: int) -> Forward:
        """Return this forward pass with torch.compile. Batches are padded to ``full_batch`` rows."""
        other = copy.copy(self)
        other.network, other.full_batch = torch.compile(self.network), full_batch
        return other

    def __call__(self, images: torch.Tensor) -> ForwardOutputs:
        """Return the outputs for (n, S, S, 3) uint8 ``images`` on the device. Can overwrite ``images``."""
        return ForwardOutputs.of([self.on_device(images)])

    def on_device(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs as `__call__`, but on the device: float32 logits and, if requested, embeddings."""
        with self.grad_mode():
            rows = len(images)
            pixels = self.preprocessing.normalize(images, self.dtype)
            if rows < self.full_batch:
                pixels = torch.cat([pixels, pixels[:1].expand(self.full_batch - rows, -1, -1, -1)])
            outputs = self._run(pixels)
            if self.options.tta == "flip":
                mirrored = self._run(pixels.flip(3))
                outputs = [(one + other) / 2 for one, other in zip(outputs, mirrored, strict=True)]
            return outputs if rows == len(outputs[0]) else [values[:rows] for values in outputs]

    def logits(self, squares: np.ndarray, rows: int, device: torch.device) -> np.ndarray:
        """Return the (n, G) float32 logits of (n, S, S, 3) uint8 images. A forward pass gets up to ``rows`` images."""
        parts = [squares[start : start + rows] for start in range(0, len(squares), rows)]
        return np.concatenate([self(torch.from_numpy(part).to(device)).arrays()[0] for part in parts])

    @property
    def reduced(self) -> bool:
        """Whether the forward pass uses fp16 or bf16."""
        return self.dtype is not torch.float32

    def _run(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.reduced):
            logits, embeddings = self.network(pixels.contiguous(memory_format=self.format))
        if embeddings is None or not self.options.embeddings:  # an ONNX file always returns embeddings
            return [logits.float()]
        return [logits.float(), embeddings.float()]


def require_finite_outputs(
    outputs: Sequence[np.ndarray | None], names: Callable[[int], str], reduced: bool = False
) -> None:
    """Raise UserError, with the names of images, if ``outputs`` (n, k) contain NaN or infinity.

    names: row → name of the image. reduced: whether the pass used fp16 or bf16.
    """
    good = [np.isfinite(values).all(axis=1) for values in outputs if values is not None]
    bad = np.flatnonzero(~np.logical_and.reduce(good))
    if not len(bad):
        return
    shown = ", ".join(names(int(row)) for row in bad[:3]) + (", ..." if len(bad) > 3 else "")
    remedy = (
        "the range of fp16 or bf16 may be too small; use --precision no"
        if reduced
        else "the weights are not usable; train again"
    )
    raise UserError(
        "not-finite", f"the model's outputs are not finite for {len(bad)} of {len(good[0])} images ({shown}): {remedy}"
    )
