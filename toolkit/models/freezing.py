"""Freeze parts of a model, and unfreeze them gradually. training/setup.py and training/trainer.py use this module.

An entry of model.freeze is a module name, 'stem' (timm's stem of the model) or 'backbone' (all except the classifier).
NAME@E freezes a part for the first E epochs only. ``[stem, layer1@6, layer2@4, layer3@2]`` first trains the last stage
and the head, then unfreezes one stage after the other (Howard, Ruder 2018, "gradual unfreezing"). If several entries
cover a parameter, it stays frozen until the last entry ends. Frozen modules are in evaluation mode: their BatchNorm
statistics do not change, and their dropout and stochastic depth are off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from shards.errors import UserError, did_you_mean
from toolkit.models.heads import head_prefixes


@dataclass(frozen=True)
class Part:
    """The part of a model that one entry freezes."""

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    """Parameters of the modules. For a stem or backbone, parameters outside of modules (ViT's tokens) are added."""
    epochs: int | None
    """Number of epochs, from the first, in which the part is frozen. None for all epochs."""

    def holds(self, epoch: int | None) -> bool:
        """Return whether the part is frozen in ``epoch`` (from 0), or in all epochs if ``epoch`` is None."""
        return self.epochs is None or (epoch is not None and epoch < self.epochs)


class Freezing:
    """The frozen parts of one unwrapped model in each epoch."""

    def __init__(self, model: nn.Module, entries: Iterable[str]) -> None:
        """Raises UserError for an unknown module name, or if all parameters are frozen in the first epoch."""
        self.parts = [_part(model, entry) for entry in entries]
        # Parameters that timm itself never trains, e.g. fixed position embeddings, are left out and stay frozen.
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        frozen = self._frozen(0)
        if all(id(p) in frozen for p in self.parameters):  # the first epoch freezes the most
            names = ", ".join(part.name for part in self.parts)
            raise UserError("nothing-to-train", f"model.freeze [{names}] leaves nothing to train in the first epoch")

    def _frozen(self, epoch: int | None) -> set[int]:
        return {id(p) for part in self.parts if part.holds(epoch) for p in part.parameters}

    def apply(self, epoch: int | None) -> bool:
        """Freeze the parts that are frozen in ``epoch``, and unfreeze all others. Return whether anything changed."""
        frozen = self._frozen(epoch)
        changed = False
        for parameter in self.parameters:
            wanted = id(parameter) not in frozen
            changed |= parameter.requires_grad is not wanted
            parameter.requires_grad_(wanted)
            if not wanted:
                parameter.grad = None  # the optimiser changes every parameter that has a gradient
        return changed

    def thawing(self, epoch: int) -> list[str]:
        """Return the names of the parts whose freezing ends at the start of ``epoch``."""
        return [part.name for part in self.parts if part.epochs == epoch]

    def training_mode(self, model: nn.Module, epoch: int | None) -> None:
        """Set a plain or wrapped model to training mode, and parts frozen in ``epoch`` to evaluation mode."""
        model.train()
        for module in (module for part in self.parts if part.holds(epoch) for module in part.modules):
            module.eval()


def check_random(model: nn.Module, entries: Iterable[str]) -> str | None:
    """Return a warning if parts of a model with random weights are frozen in all epochs. Else return None.

    Raises UserError if the whole backbone is frozen: a classifier learns little from features of random weights.
    """
    held = [part for part in (_part(model, entry) for entry in entries) if part.epochs is None]
    fixed = {id(p) for part in held for p in part.parameters}
    backbone = {id(p) for n, p in model.named_parameters() if not n.startswith(head_prefixes(model))}
    names = ", ".join(part.name for part in held)
    everything = all(id(p) in fixed for p in model.parameters())  # `Freezing` raises an error for this
    if backbone <= fixed and not everything:
        raise UserError(
            "option-conflict",
            f"model.freeze [{names}] with --model.pretrained false freezes a backbone of random weights, whose "
            f"features are useless. Load weights with --model.weights FILE, or train all parts with --model.freeze []",
        )
    return f"model.freeze [{names}] freezes random weights. Use --model.freeze [] to train them" if held else None


def _part(model: nn.Module, entry: str) -> Part:
    name, _, epochs = entry.partition("@")
    modules = dict(model.named_modules())
    several = {"backbone": _backbone, "stem": _stem}.get(name)
    found, bare = several(model) if several else ([], [])
    if name in modules and name != "backbone":
        found = [modules[name], *found]
    if not found:
        raise UserError(
            "model-unfit",
            f"model.freeze names {name!r}, but {type(model).__name__} has no such part{did_you_mean(name, modules)}",
        )
    inside = [p for module in found for p in module.parameters()]
    return Part(name, tuple(found), (*inside, *bare), int(epochs) if epochs else None)


def _stem(model: Any) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return the top-level modules and parameters of the stem, which timm's ``group_matcher`` defines."""
    matcher = getattr(model, "group_matcher", None)
    pattern = matcher().get("stem") if callable(matcher) else None
    patterns = [pattern] if isinstance(pattern, str) else [p[0] for p in pattern or [] if isinstance(p, tuple)]

    def inside(name: str) -> bool:
        return any(re.match(p, name) for p in patterns)

    return (
        [module for name, module in model.named_children() if inside(name)],
        [parameter for name, parameter in model.named_parameters(recurse=False) if inside(name)],
    )


def _backbone(model: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return the modules with tensors and the parameters that are outside of the classifier."""
    prefixes = head_prefixes(model)

    def outside(module: nn.Module, path: str) -> Iterator[nn.Module]:
        for name, child in module.named_children():
            full = f"{path}{name}."
            if any(prefix.startswith(full) for prefix in prefixes):
                if full not in prefixes:
                    yield from outside(child, full)
            elif any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                yield child

    bare = [p for name, p in model.named_parameters() if not name.startswith(prefixes)]
    return list(outside(model, "")), bare
