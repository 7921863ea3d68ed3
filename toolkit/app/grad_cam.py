"""Where in a picture a model sees a genre: Grad-CAM (Selvaraju et al. 2017) by captum, on the last stage of a backbone.

Every channel of the last stage counts as much as the genre's logit rises with its mean, and the weighted channels are
added up; what lowers the logit is left out. The map is as coarse as the stage (7x7 for a ResNet at 224 pixels). Heads
on two stages (``levels``, ``ensemble``) are explained by the last one alone.

Stages that are no (n, C, h, w) maps are turned into them on the way through a module that does nothing, which captum
watches: Swin's are (n, h, w, C), and a ViT's are rows of tokens. A ViT answers from its class token or a pool, so that
the last block's patches may reach no logit: its map is that of what enters the last block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from shards.extras import require_extra
from toolkit.metrics.multilabel import FloatArray

#: How a stage's output is laid out: (n, C, h, w), (n, h, w, C) or (n, T, C).
Layout = Literal["maps", "maps_last", "tokens"]


class NoHeatMap(Exception):
    """This architecture has no stage that is a map of the picture; the message says so in a line."""


class GradCam:
    """Heat maps of one model. Its hooks are in the model while it works: not for several threads at a time."""

    def __init__(self, model: nn.Module, image_size: int) -> None:
        """``model``: a timm model in evaluation mode for square inputs. Raises NoHeatMap, UserError without captum."""
        captum = require_extra("app", "a heat map", "captum")
        self.model, self.size = model, image_size
        self.stage = last_stage(model)
        # A ViT's tokens: how many (class, registers) stand before its patches, and the rows and columns of those.
        self.prefix: int = getattr(model, "num_prefix_tokens", 0)
        self.tokens: tuple[int, int] = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (0, 0)
        self.layout: Layout
        self.layout, self.grid = self._find_layout()
        self._watched = nn.Identity()
        self._captum = captum.attr.LayerGradCam(model, self._watched)

    def __call__(self, image: torch.Tensor, genre: int) -> FloatArray:
        """(S, S) float64, 0 or more, of a (1, 3, S, S) normalised picture: how much each place speaks for ``genre``.

        In units of the logit; all 0 where nothing speaks for it.
        """
        image = image.detach().clone().requires_grad_(True)  # whatever is frozen, the stage gets a gradient
        with self._rearranged():
            heat = self._captum.attribute(image, target=genre, relu_attributions=True)
        heat = F.interpolate(heat.detach(), (self.size, self.size), mode="bilinear", align_corners=False)
        return heat[0, 0].double().cpu().numpy()

    @contextmanager
    def _rearranged(self) -> Iterator[None]:
        """The stage's output (a ViT's last block's input) goes through the watched module as (n, C, h, w)."""

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
        """How the stage's output is laid out, and the rows and columns of its map."""
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
        raise NoHeatMap(f"{type(self.model).__name__}: its last stage is no map of the picture")


def last_stage(model: nn.Module) -> nn.Module:
    """The module whose output is the last stage's. Raises NoHeatMap if timm names none."""
    info = getattr(model, "feature_info", None)
    stages: list[dict[str, Any]] = list(getattr(info, "info", info) or [])
    modules = dict(model.named_modules())
    name = stages[-1].get("module", "") if stages else ""
    if name not in modules or not name:
        raise NoHeatMap(f"timm names no stages of {type(model).__name__}")
    return modules[name]
