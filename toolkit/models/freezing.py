"""Which parts of a model stay as they are, and until which epoch: freezing and gradual unfreezing.

An entry of model.freeze names a module, 'stem' (what timm calls the model's stem) or 'backbone' (all but the
classifier); with @E it is held for the first E epochs only. ``[stem, layer1@6, layer2@4, layer3@2]`` trains the last
stage and the head first and lets one stage after the other follow (Howard, Ruder 2018, "gradual unfreezing").
A parameter is held while any entry that covers it holds. Held modules stay in evaluation mode: their BatchNorm
statistics are held too, their dropout and stochastic depth are off.
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
    """What one entry holds."""

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    """Those of the modules and, in a stem or backbone, those that lie bare beside modules (ViT's tokens)."""
    epochs: int | None
    """Number of epochs held; None: all of them."""

    def holds(self, epoch: int | None) -> bool:
        """Whether it is held in ``epoch``, counted from 0; None is after the last thaw."""
        return self.epochs is None or (epoch is not None and epoch < self.epochs)


class Freezing:
    """The held parts of one unwrapped model, epoch by epoch."""

    def __init__(self, model: nn.Module, entries: Iterable[str]) -> None:
        """Raises UserError for a name that no module has, or if the first epoch would have nothing to train."""
        self.parts = [_part(model, entry) for entry in entries]
        # Some models of timm have parameters that never learn, e.g. fixed position embeddings: not ours to thaw.
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        held = self._held(0)
        if all(id(p) in held for p in self.parameters):  # what is trained once is trained ever after
            names = ", ".join(part.name for part in self.parts)
            raise UserError("nothing-to-train", f"model.freeze [{names}] leaves nothing to train in the first epoch")

    def _held(self, epoch: int | None) -> set[int]:
        return {id(p) for part in self.parts if part.holds(epoch) for p in part.parameters}

    def apply(self, epoch: int | None) -> bool:
        """Let gradients flow as in ``epoch`` (from 0; None: after the last thaw). Returns whether anything changed."""
        held = self._held(epoch)
        changed = False
        for parameter in self.parameters:
            wanted = id(parameter) not in held
            changed |= parameter.requires_grad is not wanted
            parameter.requires_grad_(wanted)
            if not wanted:
                parameter.grad = None  # an optimiser would go on moving it
        return changed

    def thawing(self, epoch: int) -> list[str]:
        """Names of what ``epoch`` trains and the epoch before did not."""
        return [part.name for part in self.parts if part.epochs == epoch]

    def training_mode(self, model: nn.Module, epoch: int | None) -> None:
        """``model.train()``, but what ``epoch`` holds is in evaluation mode; ``model`` may be wrapped."""
        model.train()
        for module in (module for part in self.parts if part.holds(epoch) for module in part.modules):
            module.eval()


def check_random(model: nn.Module, entries: Iterable[str]) -> str | None:
    """One line for the log if parts of a model with random weights would never learn; else None.

    Raises UserError if that is all of its backbone: a classifier learns little from what random weights give, and the
    run would end as if all were well.
    """
    held = [part for part in (_part(model, entry) for entry in entries) if part.epochs is None]
    fixed = {id(p) for part in held for p in part.parameters}
    backbone = {id(p) for n, p in model.named_parameters() if not n.startswith(head_prefixes(model))}
    names = ", ".join(part.name for part in held)
    everything = all(id(p) in fixed for p in model.parameters())  # then Freezing says so
    if backbone <= fixed and not everything:
        raise UserError(
            "option-conflict",
            f"model.freeze [{names}] with --model.pretrained false holds a backbone of random weights, from which "
            f"nothing can be learnt: give trained ones with --model.weights FILE, or let it learn by --model.freeze []",
        )
    return f"model.freeze [{names}] holds random weights: from scratch take --model.freeze []" if held else None


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
    """Top-level modules and bare parameters that timm's ``group_matcher`` puts into the stem."""
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
    """All modules and bare parameters but the classifier's, and but those that hold nothing: dropout beside the
    classifier is the head's."""
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
