"""Heat maps of genres: Grad-CAM (Selvaraju et al. 2017) with captum, on a model's last stage. overlays.py draws them.

The weight of a channel is the gradient of the genre's logit, averaged over the channel. The map is the weighted sum of
the channels, without negative values. The map has the resolution of the stage, such as 7x7 for a ResNet at 224 pixels.
If a classifier uses two stages (``levels``, ``ensemble``), the map uses only the last stage.

captum observes an identity module. The input of this module must have the layout (n, C, h, w). The layouts (n, h, w, C)
of Swin and (n, tokens, C) of a ViT are converted before and after the module. If a ViT predicts from its class token,
the patches after its last block do not influence a logit. So the map of a ViT uses the input of the last block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from toolkit.metrics.helpers import FloatArray

#: Layout of the output of a stage: (n, C, h, w), (n, h, w, C) or (n, T, C).
Layout = Literal["maps", "maps_last", "tokens"]


class NoHeatMap(Exception):
    """No stage of the architecture has an output with rows and columns. The message says why, in one line."""


class GradCam:
    """Heat maps of one model. Not thread-safe: a call registers hooks in the model."""

    def __init__(self, model: nn.Module, image_size: int) -> None:
        """``model``: timm model in evaluation mode. Raises NoHeatMap if no map exists."""
        from captum.attr import LayerGradCam  # the import takes some time

        self.model, self.size = model, image_size
        self.stage = last_stage(model)
        # For a ViT: number of tokens before the patches (class, registers), and rows and columns of the patches.
        self.prefix: int = getattr(model, "num_prefix_tokens", 0)
        self.tokens: tuple[int, int] = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (0, 0)
        self.layout: Layout
        self.layout, self.grid = self._find_layout()
        self._watched = nn.Identity()
        self._captum = LayerGradCam(model, self._watched)

    def __call__(self, image: torch.Tensor, genre: int) -> FloatArray:
        """Return the (S, S) float64 heat map of the genre in column ``genre``. ``image`` is normalised (1, 3, S, S).

        A high value means that this place increases the logit. Values are at least 0, and all can be 0.
        """
        image = image.detach().clone().requires_grad_(True)  # the stage needs a gradient even if layers are frozen
        with self._rearranged():
            heat = self._captum.attribute(image, target=genre, relu_attributions=True)
        heat = F.interpolate(heat.detach(), (self.size, self.size), mode="bilinear", align_corners=False)
        return heat[0, 0].double().cpu().numpy()

    @contextmanager
    def _rearranged(self) -> Iterator[None]:
        """During ``with``, pass the output of the last stage to captum. For a ViT, pass the input of the last block."""

        def after(_: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return self._through(output)

        def before(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (self._through(inputs[0]), *inputs[1:])

        if self.layout == "tokens":
            handle = self.stage.register_forward_pre_hook(before)
        else:
            handle = self.stage.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "maps":
            return self._watched(x)
        if self.layout == "maps_last":
            return self._watched(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        grid = x[:, self.prefix :].transpose(1, 2).unflatten(2, self.tokens)
        return torch.cat([x[:, : self.prefix], self._watched(grid).flatten(2).transpose(1, 2)], dim=1)

    def _find_layout(self) -> tuple[Layout, tuple[int, int]]:
        """Return the layout of the stage's output, and the rows and columns of its map."""
        shapes: list[tuple[int, ...]] = []
        handle = self.stage.register_forward_hook(
            lambda _, inputs, output: shapes.append(tuple(getattr(output, "shape", ())))
        )
        device = next(self.model.parameters()).device
        try:
            with torch.no_grad():
                self.model(torch.zeros(1, 3, self.size, self.size, device=device))
        finally:
            handle.remove()
        shape = shapes[0] if len(shapes) == 1 else ()
        if len(shape) == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return "maps_last", (shape[1], shape[2])
        if len(shape) == 4:
            return "maps", (shape[2], shape[3])
        rows, columns = self.tokens
        if len(shape) == 3 and shape[1] == self.prefix + rows * columns > 0:
            return "tokens", (rows, columns)
        raise NoHeatMap(f"the last stage of {type(self.model).__name__} is not a map of the picture")


def last_stage(model: nn.Module) -> nn.Module:
    """Return the module of the last stage. Raises NoHeatMap if timm lists no stages of this model."""
    info = getattr(model, "feature_info", None)
    stages: list[dict[str, Any]] = list(getattr(info, "info", info) or [])
    modules = dict(model.named_modules())
    name = stages[-1].get("module", "") if stages else ""
    if name not in modules or not name:
        raise NoHeatMap(f"timm lists no stages of {type(model).__name__}")
    return modules[name]
