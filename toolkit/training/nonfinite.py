"""Updates whose loss or gradient is no number: noticed without waiting for the device, told with the samples at fault.

    micro-batch ─→ note: which rows' losses are not finite ─┐ on the device
    gradient ───→ allow: is its norm finite? ───────────────┴─→ stop: looked at in `check`, where training waits anyway
                                                              └→ skip: looked at once per update; a bad one is not made

Every rank makes the same calls and comes to the same answer. Under fp16 the gradient scaler answers to infinite
gradients, which are how it finds its scale: of the above only losses count then. It leaves such updates out by itself
and halves the scale; `check_scale` ends a run in which that helps no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import get_total_norm

from shards.errors import UserError
from toolkit.config.schema import OnNonfinite
from toolkit.data.sampling.plan import MicroBatch
from toolkit.distributed.collectives import sum_over_ranks
from toolkit.distributed.fsdp import local

log = logging.getLogger(__name__)

MAX_NAMED_SAMPLES = 10
#: Updates of an epoch that may be skipped (overflows in fp16 apart): more are no accident.
MAX_SKIPPED = 10
#: Updates after which `allow` looks by itself: what is noted of each until then stays in memory.
MAX_UNCHECKED_UPDATES = 1000
#: Under fp16 a run ends with a scale below the first (DeepSpeed's and Megatron's least one), or when so many updates in
#: a row overflowed. The scale begins at 2^16 and halves each time, so the first comes after 17; the second is for one
#: that has grown meanwhile, and may have far to fall when a backbone thaws.
LEAST_SCALE, MOST_OVERFLOWS = 1.0, 40
REMEDY = "lower --optim.lr, set --optim.clip_norm 1 or use --train.precision bf16 or no"


@dataclass
class _Noted:
    """What this rank knows of an update, still on the device."""

    epoch: int
    step: int
    """From 0."""
    micro_batches: list[MicroBatch] = field(default_factory=list)
    flags: list[torch.Tensor] = field(default_factory=list)
    """(n,) bool of each share: its loss is not finite."""
    gradient: torch.Tensor | None = None
    """Scalar bool: an element of the gradient is not finite."""

    def bad(self) -> torch.Tensor:
        """Scalar bool: anything of it is not finite."""
        bad = torch.stack([flags.any() for flags in self.flags]).any()
        return bad if self.gradient is None else bad | self.gradient

    def findings(self) -> _Findings:
        """The same on the host."""
        bad = [flags.cpu().numpy() for flags in self.flags]
        samples = [
            int(i) for micro_batch, rows in zip(self.micro_batches, bad, strict=True) for i in micro_batch.indices[rows]
        ]
        good_rows = sum(
            int((micro_batch.valid & ~rows).sum()) for micro_batch, rows in zip(self.micro_batches, bad, strict=True)
        )
        return (self.epoch, self.step), samples, good_rows


#: What ranks tell each other of an update: (epoch, step); samples whose loss is not finite; how many of the rows that
#: count have a finite one.
_Findings = tuple[tuple[int, int], list[int], int]


class Guard:
    """Looks at every update of a run for one rank. See the module for what ``stop`` and ``skip`` do."""

    def __init__(self, accelerator: Accelerator, on_nonfinite: OnNonfinite, sample_id: Callable[[int], str]) -> None:
        """``sample_id`` gives the user's id of a sample of the training split."""
        self.accelerator, self.on_nonfinite, self.sample_id = accelerator, on_nonfinite, sample_id
        self.skipped: list[str] = []
        """What was wrong with each skipped update of the epoch, as far as this process made it."""
        self._epoch = -1
        self._noted: list[_Noted] = []
        """Updates since the last look."""
        self._trouble = torch.zeros((), device=accelerator.device)

    def begin(self, epoch: int, step: int) -> None:
        """Before the forward passes of an update, ``step`` counting from 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.skipped.clear()
        self._noted.append(_Noted(epoch, step))

    def note(self, losses: torch.Tensor, micro_batch: MicroBatch) -> None:
        """The (n,) losses of a micro-batch. Does not wait for the device."""
        self._noted[-1].micro_batches.append(micro_batch)
        self._noted[-1].flags.append(~torch.isfinite(losses.detach()))

    def withdraw(self) -> None:
        """The update that began last is not made, for a reason that is none of its numbers'."""
        self._noted.pop()

    def allow(self, model: nn.Module) -> bool:
        """Whether the update is to be made, with the gradient in ``model`` (unwrapped). Collective with ``skip``.

        If not, a warning names the samples.
        """
        noted = self._noted[-1]
        if self.accelerator.scaler is None:
            noted.gradient = ~torch.isfinite(_size([p.grad for p in model.parameters()], self._trouble))
        self._trouble += noted.bad()
        if self.on_nonfinite == "stop":
            if len(self._noted) >= MAX_UNCHECKED_UPDATES:
                self.check()
            return True
        told = self._told()
        if told is None:
            return True
        self.skipped.append(self._story(told))
        if self.accelerator.is_main_process:
            log.warning("update skipped: %s", self.skipped[-1])
        return False

    def check(self) -> None:
        """Raise UserError, on every rank, if an update since the last look was not finite. Collective; waits."""
        told = self._told()
        if told is not None:
            raise UserError(
                "not-finite",
                f"{self._story(told)}: {REMEDY}, or leave such updates out with --train.on_nonfinite skip; the last "
                f"checkpoint is kept",
            )

    def check_weights(self, model: nn.Module) -> None:
        """The same before weights are saved, and for the weights that the last update made. Collective; waits."""
        self.check()
        self._trouble += ~torch.isfinite(_size(list(model.parameters()), self._trouble))
        if self._agreed():
            raise UserError(
                "not-finite", f"the last update made weights that are not finite: {REMEDY}; the last checkpoint is kept"
            )

    def check_skipped(self, count: int, updates: int) -> None:
        """Raise UserError, on every rank, if too many updates of an epoch were skipped: over MAX_SKIPPED, or all.

        ``count`` of ``updates`` were.
        """
        if count > MAX_SKIPPED or count == updates:
            listed = "; ".join(self.skipped[-MAX_NAMED_SAMPLES:])
            raise UserError(
                "not-finite",
                f"{count} of the epoch's {updates} updates were not finite and skipped, where {MAX_SKIPPED} are "
                f"the limit: {REMEDY}; the last checkpoint is kept. They were: {listed}",
            )

    def _agreed(self) -> bool:
        """Whether any rank met trouble since the last look."""
        trouble = float(sum_over_ranks(self.accelerator, self._trouble))
        self._trouble.zero_()
        return trouble > 0

    def _told(self) -> list[_Findings] | None:
        """What each rank knows of the first update since the last look that was not finite; None if all were."""
        noted, self._noted = self._noted, []
        if not self._agreed():
            return None
        own = next((update.findings() for update in noted if bool(update.bad())), None)
        everyone = [own]
        if self.accelerator.num_processes > 1:
            everyone = gather_object(everyone)
        found = [told for told in everyone if told is not None]
        return [told for told in found if told[0] == min(found)[0]]

    def _story(self, ranks: list[_Findings]) -> str:
        """What was wrong, without a remedy."""
        (epoch, step), _, _ = ranks[0]
        where = f"at epoch {epoch + 1}, step {step + 1}"
        samples = list(dict.fromkeys(sample for _, own, _ in ranks for sample in own))
        good_rows = sum(good for _, _, good in ranks)
        if not samples:
            return f"the gradient is not finite {where}, though the loss of every sample is"
        more = f" and {len(samples) - MAX_NAMED_SAMPLES} more" if len(samples) > MAX_NAMED_SAMPLES else ""
        ids = (
            ", ".join(map(self.sample_id, samples[:MAX_NAMED_SAMPLES])) + more
        )  # of few: each may be a read of its shard's index
        if not good_rows and len(samples) > 1:
            return (
                f"the loss is finite {where} for none of {len(samples)} samples, so the weights or the rate are at "
                f"fault, or one of them by way of batch statistics, {ids}"
            )
        return f"the loss is not finite {where} for {len(samples)} of {len(samples) + good_rows} samples, {ids}"


def check_scale(scaler: torch.amp.GradScaler, in_a_row: int, guard: Guard | None, epoch: int, step: int) -> None:
    """Raise UserError if the scaler, which left out this update and ``in_a_row`` in all, finds no scale. Waits.

    Called only after such an update. Ranks have the same gradients, so that all of them raise it or none.
    """
    scale = scaler.get_scale()
    if scale < LEAST_SCALE or in_a_row >= MOST_OVERFLOWS:
        if guard is not None:
            guard.check()  # a loss that is not finite says more, and names samples
        raise UserError(
            "not-finite",
            f"the gradients are not finite in fp16 at epoch {epoch + 1}, step {step + 1}, whatever their scale: "
            f"{in_a_row} updates in a row were skipped, and the gradient scaler is down to {scale:.3g}: use "
            f"--train.precision bf16 or no, lower --optim.lr or set --optim.clip_norm 1; the last checkpoint is kept",
        )


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Go on with a checkpoint's scale, unless it was saved by a version that let it fall to nothing."""
    if state["scale"] >= LEAST_SCALE:
        scaler.load_state_dict(state)
        return
    text = "the checkpoint's gradient scale is %.3g, at which gradients vanish: starting again from %g"
    log.warning(text, state["scale"], scaler.get_scale())


def _size(tensors: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm, a scalar: finite if every element is, and small enough to be squared; 0 of nothing.

    It costs a hundredth of an update. Looking for the largest element costs a fifth on a CPU.
    """
    # Of what is spread each rank looks at its part.
    own = [local(t) for t in tensors if t is not None and t.numel()]
    return get_total_norm(own).to(like.device) if own else torch.zeros_like(like)
