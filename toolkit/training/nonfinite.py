"""Detect updates whose loss or gradient is not finite, without waiting for the device, and report their samples.

    micro-batch ─→ note: flags of losses that are not finite ─┐ on the device
    gradient ───→ allow: flag of its norm ────────────────────┴─→ stop: `check` reads flags when training waits anyway
                                                              └─→ skip: flags are read each update; bad ones are skipped

Every rank makes the same calls and gets the same result. In fp16 infinite gradients are normal: the gradient scaler
finds its scale by them, skips such updates and halves the scale. So this module then checks losses only, and
`check_scale` ends a run in which a lower scale does not help.
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
#: Maximum number of skipped updates per epoch, without overflows in fp16.
MAX_SKIPPED = 10
#: Number of updates after which `allow` checks the flags itself, because they stay in memory until a check.
MAX_UNCHECKED_UPDATES = 1000
#: In fp16 a run ends if the scale is under LEAST_SCALE (the least one of DeepSpeed and Megatron), or if MOST_OVERFLOWS
#: updates in a row overflowed. The scale starts at 2^16 and halves each time, so it is under LEAST_SCALE after 17
#: overflows. A scale that has grown may need more, for example when a backbone is unfrozen.
LEAST_SCALE, MOST_OVERFLOWS = 1.0, 40
REMEDY = "lower --optim.lr, set --optim.clip_norm 1 or use --train.precision bf16 or no"


@dataclass
class _Noted:
    """This rank's flags of an update, on the device."""

    epoch: int
    step: int
    """From 0."""
    micro_batches: list[MicroBatch] = field(default_factory=list)
    flags: list[torch.Tensor] = field(default_factory=list)
    """(n,) bool per micro-batch: whether a row's loss is not finite."""
    gradient: torch.Tensor | None = None
    """Scalar bool: whether the gradient is not finite."""

    def bad(self) -> torch.Tensor:
        """Return a scalar bool: whether any loss or the gradient is not finite."""
        bad = torch.stack([flags.any() for flags in self.flags]).any()
        return bad if self.gradient is None else bad | self.gradient

    def findings(self) -> _Findings:
        """Return the findings of this update on the host. Waits for the device."""
        bad = [flags.cpu().numpy() for flags in self.flags]
        pairs = list(zip(self.micro_batches, bad, strict=True))
        samples = [int(i) for micro_batch, rows in pairs for i in micro_batch.indices[rows]]
        good_rows = sum(int((micro_batch.valid & ~rows).sum()) for micro_batch, rows in pairs)
        return (self.epoch, self.step), samples, good_rows


#: Data of an update that ranks exchange: (epoch, step); samples whose loss is not finite; number of valid rows with a
#: finite loss.
_Findings = tuple[tuple[int, int], list[int], int]


class Guard:
    """Check every update of a run on one rank. The module's docstring explains ``stop`` and ``skip``."""

    def __init__(self, accelerator: Accelerator, on_nonfinite: OnNonfinite, sample_id: Callable[[int], str]) -> None:
        """``sample_id``: index of a training sample → its id."""
        self.accelerator, self.on_nonfinite, self.sample_id = accelerator, on_nonfinite, sample_id
        self.skipped: list[str] = []
        """Descriptions of the epoch's skipped updates, since the start of this process."""
        self._epoch = -1
        self._noted: list[_Noted] = []
        """Updates since the last check."""
        self._trouble = torch.zeros((), device=accelerator.device)

    def begin(self, epoch: int, step: int) -> None:
        """Start an update, before its forward passes; ``step`` counts from 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.skipped.clear()
        self._noted.append(_Noted(epoch, step))

    def note(self, losses: torch.Tensor, micro_batch: MicroBatch) -> None:
        """Add the losses (n,) of a micro-batch. Does not wait for the device."""
        self._noted[-1].micro_batches.append(micro_batch)
        self._noted[-1].flags.append(~torch.isfinite(losses.detach()))

    def withdraw(self) -> None:
        """Forget the last started update, which is not made for another reason."""
        self._noted.pop()

    def allow(self, model: nn.Module) -> bool:
        """Return whether to make the update with the gradient in ``model`` (unwrapped). Collective with ``skip``.

        Logs a warning with the samples if not.
        """
        noted = self._noted[-1]
        if self.accelerator.scaler is None:
            noted.gradient = ~torch.isfinite(_size([p.grad for p in model.parameters()], self._trouble))
        self._trouble += noted.bad()
        if self.on_nonfinite == "stop":
            if len(self._noted) >= MAX_UNCHECKED_UPDATES:
                self.check()
            return True
        findings = self._told()
        if findings is None:
            return True
        self.skipped.append(self._story(findings))
        if self.accelerator.is_main_process:
            log.warning("update skipped: %s", self.skipped[-1])
        return False

    def check(self) -> None:
        """Raise UserError, on every rank, if an update since the last check was not finite. Collective; waits."""
        findings = self._told()
        if findings is not None:
            raise UserError(
                "not-finite",
                f"{self._story(findings)}: {REMEDY}, or skip such updates with --train.on_nonfinite skip; the last "
                f"checkpoint is kept",
            )

    def check_weights(self, model: nn.Module) -> None:
        """Do `check`, and check the weights of ``model`` too, before they are saved. Collective; waits."""
        self.check()
        self._trouble += ~torch.isfinite(_size(list(model.parameters()), self._trouble))
        if self._agreed():
            raise UserError(
                "not-finite", f"the last update made weights that are not finite: {REMEDY}; the last checkpoint is kept"
            )

    def check_skipped(self, count: int, updates: int) -> None:
        """Raise UserError, on every rank, if too many of an epoch's ``updates`` were skipped.

        That is a ``count`` over MAX_SKIPPED, or equal to ``updates``.
        """
        if count > MAX_SKIPPED or count == updates:
            listed = "; ".join(self.skipped[-MAX_NAMED_SAMPLES:])
            raise UserError(
                "not-finite",
                f"{count} of the epoch's {updates} updates were not finite and skipped (limit {MAX_SKIPPED}): "
                f"{REMEDY}; the last checkpoint is kept. They were: {listed}",
            )

    def _agreed(self) -> bool:
        """Return whether any rank had a value that is not finite since the last check."""
        trouble = float(sum_over_ranks(self.accelerator, self._trouble))
        self._trouble.zero_()
        return trouble > 0

    def _told(self) -> list[_Findings] | None:
        """Return the ranks' findings of the first update since the last check that was not finite; None if all were."""
        noted, self._noted = self._noted, []
        if not self._agreed():
            return None
        own = next((update.findings() for update in noted if bool(update.bad())), None)
        everyone = [own]
        if self.accelerator.num_processes > 1:
            everyone = gather_object(everyone)
        found = [findings for findings in everyone if findings is not None]
        return [findings for findings in found if findings[0] == min(found)[0]]

    def _story(self, ranks: list[_Findings]) -> str:
        """Return a description of the update, without a remedy."""
        (epoch, step), _, _ = ranks[0]
        where = f"at epoch {epoch + 1}, step {step + 1}"
        samples = list(dict.fromkeys(sample for _, own, _ in ranks for sample in own))
        good_rows = sum(good for _, _, good in ranks)
        if not samples:
            return f"the gradient is not finite {where}, but the loss of every sample is"
        more = f" and {len(samples) - MAX_NAMED_SAMPLES} more" if len(samples) > MAX_NAMED_SAMPLES else ""
        ids = (
            ", ".join(map(self.sample_id, samples[:MAX_NAMED_SAMPLES])) + more
        )  # only a few, because each may read its shard's index
        if not good_rows and len(samples) > 1:
            return (
                f"the loss is not finite {where} for all {len(samples)} samples, so the weights or the rate are "
                f"wrong, or one sample through batch statistics, {ids}"
            )
        return f"the loss is not finite {where} for {len(samples)} of {len(samples) + good_rows} samples, {ids}"


def check_scale(scaler: torch.amp.GradScaler, in_a_row: int, guard: Guard | None, epoch: int, step: int) -> None:
    """Raise UserError if the scaler finds no usable scale. Called after an update that it skipped. Waits.

    in_a_row: skipped updates in a row, this one included. Ranks have equal gradients, so all of them raise it or none.
    """
    scale = scaler.get_scale()
    if scale < LEAST_SCALE or in_a_row >= MOST_OVERFLOWS:
        if guard is not None:
            guard.check()  # its error about losses is more precise, because it has the samples
        raise UserError(
            "not-finite",
            f"the gradients are not finite in fp16 at epoch {epoch + 1}, step {step + 1} at any scale: "
            f"{in_a_row} updates in a row were skipped, and the gradient scaler is down to {scale:.3g}: use "
            f"--train.precision bf16 or no, lower --optim.lr or set --optim.clip_norm 1; the last checkpoint is kept",
        )


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Restore a checkpoint's scale, unless it is under LEAST_SCALE (from an earlier version without a limit)."""
    if state["scale"] >= LEAST_SCALE:
        scaler.load_state_dict(state)
        return
    text = "the checkpoint's gradient scale is %.3g, at which gradients vanish: starting from %g"
    log.warning(text, state["scale"], scaler.get_scale())


def _size(tensors: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm, a scalar: finite if every element is finite and its square, too; 0 without elements.

    It costs 1% of an update. The largest element would cost 20% on a CPU.
    """
    # Each rank uses its own part of a sharded tensor.
    own = [local(t) for t in tensors if t is not None and t.numel()]
    return get_total_norm(own).to(like.device) if own else torch.zeros_like(like)
