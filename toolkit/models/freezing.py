"""Freezing and gradual unfreezing of parts of a model.

An entry of model.freeze is a module name, 'stem' (the stem of the model in timm) or 'backbone' (all except the
classifier). With @E it is frozen for the first E epochs only. ``[stem, layer1@6, layer2@4, layer3@2]`` trains the last
stage and the head first, then unfreezes one stage after the other (Howard, Ruder 2018, "gradual unfreezing"). A
parameter is frozen while any entry that covers it is frozen. Frozen modules are in evaluation mode: their BatchNorm
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
    """Parameters of the modules and, for a stem or backbone, those outside of submodules (ViT's tokens)."""
    epochs: int | None
    """Number of frozen epochs; None: all epochs."""

    def holds(self, epoch: int | None) -> bool:
        """Return whether the part is frozen in ``epoch``, counted from 0; None is after the last unfreezing."""
        return self.epochs is None or (epoch is not None and epoch < self.epochs)


class Freezing:
    """The frozen parts of one unwrapped model in each epoch."""

    def __init__(self, model: nn.Module, entries: Iterable[str]) -> None:
        """Raises UserError for an unknown module name, or if nothing could be trained in the first epoch."""
        self.parts = [_part(model, entry) for entry in entries]
        # Some models of timm have parameters that are never trained, e.g. fixed position embeddings: do not unfreeze.
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        held = self._held(0)
        if all(id(p) in held for p in self.parameters):  # later epochs freeze no more than the first
            names = ", ".join(part.name for part in self.parts)
            raise UserError("nothing-to-train", f"model.freeze [{names}] leaves nothing to train in the first epoch")

    def _held(self, epoch: int | None) -> set[int]:
        return {id(p) for part in self.parts if part.holds(epoch) for p in part.parameters}

    def apply(self, epoch: int | None) -> bool:
        """Set requires_grad for ``epoch`` (from 0; None: after the last unfreezing). Return whether any changed."""
        held = self._held(epoch)
        changed = False
        for parameter in self.parameters:
            wanted = id(parameter) not in held
            changed |= parameter.requires_grad is not wanted
            parameter.requires_grad_(wanted)
            if not wanted:
                parameter.grad = None  # otherwise the optimiser would still change it
        return changed

    def thawing(self, epoch: int) -> list[str]:
        """Names of what ``epoch`` trains and the epoch before did not."""
        return [part.name for part in self.parts if part.epochs == epoch]

    def training_mode(self, model: nn.Module, epoch: int | None) -> None:
        """Call ``model.train()``, then set the parts frozen in ``epoch`` to evaluation mode. Wrappers are allowed."""
        model.train()
        for module in (module for part in self.parts if part.holds(epoch) for module in part.modules):
            module.eval()


def check_random(model: nn.Module, entries: Iterable[str]) -> str | None:
    """Return a line for the log if parts of a model with random weights are frozen in all epochs; else None.

    Raises UserError if the whole backbone is frozen: a classifier learns little from features of random weights, and
    the run would end without an error.
    """
    held = [part for part in (_part(model, entry) for entry in entries) if part.epochs is None]
    fixed = {id(p) for part in held for p in part.parameters}
    backbone = {id(p) for n, p in model.named_parameters() if not n.startswith(head_prefixes(model))}
    names = ", ".join(part.name for part in held)
    everything = all(id(p) in fixed for p in model.parameters())  # then Freezing says so
    if backbone <= fixed and not everything:
        raise UserError(
            "option-conflict",
            f"model.freeze [{names}] with --model.pretrained false freezes a backbone of random weights, whose "
            f"features are useless: use trained weights with --model.weights FILE, or train it with --model.freeze []",
        )
    return f"model.freeze [{names}] freezes random weights: use --model.freeze []" if held else None


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
            f"model.freeze names {name!r}, which {type(model).__name__} does not have{did_you_mean(name, modules)}",
        )
    inside = [p for module in found for p in module.parameters()]
    return Part(name, tuple(found), (*inside, *bare), int(epochs) if epochs else None)


def _stem(model: Any) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return the top-level modules and parameters that belong to the stem by timm's ``group_matcher``."""
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
    """Return all modules and parameters except the classifier's and modules without tensors (dropout of the head)."""
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
