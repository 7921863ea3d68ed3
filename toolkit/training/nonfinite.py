"""Detect updates whose loss or gradient is not finite, and report their samples.

`note` keeps the losses of a micro-batch on the device, and `allow` computes and keeps the norm of the gradient. With
train.on_nonfinite "stop", the kept values are examined when training waits for the device anyway, and `check` ends the
run if a value is not finite. An update therefore computes nothing but the norm, which also limits the gradient
(optim.clip_norm). With "skip", `allow` examines the values and skips a bad update.

Every rank makes the same calls and gets the same result. In fp16, infinite gradients are normal. The gradient
scaler skips such updates and halves its scale. So only losses are checked in fp16, and `check_scale` ends the run
after too many overflows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
#: Maximum number of skipped updates per epoch. Overflows in fp16 do not count.
MAX_SKIPPED = 10
#: Number of updates after which `allow` examines the values itself, because they stay in memory until then.
MAX_UNCHECKED_UPDATES = 1000
#: In fp16 a run ends if the gradient scale is under LEAST_SCALE (the limit of DeepSpeed and Megatron), or after
#: MOST_OVERFLOWS overflows in a row. The scale starts at 2^16 and halves each time, so it is under LEAST_SCALE after 17
#: overflows. A scale that has grown may need more overflows, for example when a backbone is unfrozen.
LEAST_SCALE, MOST_OVERFLOWS = 1.0, 40
REMEDY = "lower --optim.lr, set --optim.clip_norm to 1, or set --train.precision to bf16 or no"


@dataclass
class _UpdateValues:
    epoch: int
    step: int
    """Number of the update in its epoch, from 0."""
    micro_batches: list[MicroBatch] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    """One (n,) tensor per micro-batch: the losses of its rows."""
    norm: torch.Tensor | None = None
    """Scalar: the norm of the gradient. None in fp16."""

    def values(self) -> list[torch.Tensor]:
        """Return 1-dimensional tensors. All their elements are finite if the losses and the gradient are finite."""
        return self.losses if self.norm is None else [*self.losses, self.norm.reshape(1)]

    def findings(self) -> _Findings:
        """Copy this update's losses to the host, and return the findings. Waits for the device."""
        bad = [~np.isfinite(losses.cpu().numpy()) for losses in self.losses]
        pairs = list(zip(self.micro_batches, bad, strict=True))
        samples = [int(i) for micro_batch, rows in pairs for i in micro_batch.indices[rows]]
        good_rows = sum(int((micro_batch.valid & ~rows).sum()) for micro_batch, rows in pairs)
        return (self.epoch, self.step), samples, good_rows


#: A rank's report of an update: (epoch, step), samples whose loss is not finite, number of rows with a finite loss.
_Findings = tuple[tuple[int, int], list[int], int]


class Guard:
    """Checks on one rank whether the losses and the gradient of every update are finite."""

    def __init__(self, accelerator: Accelerator, on_nonfinite: OnNonfinite, sample_id: Callable[[int], str]) -> None:
        """``sample_id`` is a function from the index of a training sample to its id."""
        self.accelerator, self.on_nonfinite, self.sample_id = accelerator, on_nonfinite, sample_id
        self.skipped: list[str] = []
        """Descriptions of the updates that this process has skipped in the current epoch."""
        self._epoch = -1
        self.norm: torch.Tensor | None = None
        """Scalar: Euclidean norm of the gradient of the last update, of this rank's part if it is sharded. None in
        fp16."""
        self._unchecked: list[_UpdateValues] = []
        """Updates since the last check."""

    def begin(self, epoch: int, step: int) -> None:
        """Start an update. Called before its forward passes. ``step`` counts from 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.skipped.clear()
        self._unchecked.append(_UpdateValues(epoch, step))

    def note(self, losses: torch.Tensor, micro_batch: MicroBatch) -> None:
        """Keep the losses (n,) of a micro-batch for the next check."""
        self._unchecked[-1].micro_batches.append(micro_batch)
        self._unchecked[-1].losses.append(losses.detach())

    def withdraw(self) -> None:
        """Forget the current update. Called if the update is not made because a rank cannot read its samples."""
        self._unchecked.pop()

    def allow(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Return whether to make the update with the gradients of ``parameters``. If not, log a warning."""
        if self.accelerator.scaler is None:
            self.norm = _norm([p.grad for p in parameters], self.accelerator.device)
        self._unchecked[-1].norm = self.norm
        if self.on_nonfinite == "stop":
            if len(self._unchecked) >= MAX_UNCHECKED_UPDATES:
                self.check()
            return True
        findings = self._gather_findings()
        if findings is None:
            return True
        self.skipped.append(self._describe(findings))
        if self.accelerator.is_main_process:
            log.warning("update skipped: %s", self.skipped[-1])
        return False

    def check(self) -> None:
        """Wait for the device. All ranks raise UserError if a loss or gradient since the last check is not finite."""
        findings = self._gather_findings()
        if findings is not None:
            raise UserError(
                "not-finite",
                f"{self._describe(findings)}: {REMEDY}. To skip such updates, set --train.on_nonfinite skip; "
                f"the last checkpoint is kept",
            )

    def check_weights(self, model: nn.Module) -> None:
        """Raise UserError if a loss or gradient since the last check, or a weight of ``model``, is not finite."""
        self.check()
        if self._any_bad([_norm(list(model.parameters()), self.accelerator.device).reshape(1)]):
            raise UserError(
                "not-finite", f"the last update made weights that are not finite: {REMEDY}; the last checkpoint is kept"
            )

    def check_skipped(self, count: int, updates: int) -> None:
        """Raise UserError, on every rank, if too many updates of an epoch were skipped.

        Too many means all ``updates`` of the epoch, or more than MAX_SKIPPED. ``count`` updates were skipped.
        """
        if count > MAX_SKIPPED or count == updates:
            listed = "; ".join(self.skipped[-MAX_NAMED_SAMPLES:])
            raise UserError(
                "not-finite",
                f"{count} of the epoch's {updates} updates were skipped as not finite (limit {MAX_SKIPPED}): "
                f"{REMEDY}; the last checkpoint is kept. The skipped updates: {listed}",
            )

    def _any_bad(self, values: list[torch.Tensor]) -> bool:
        """Return whether an element of ``values`` (1-dimensional tensors) of any rank is not finite. Waits."""
        bad = _bad(values).float() if values else torch.zeros((), device=self.accelerator.device)
        return float(sum_over_ranks(self.accelerator, bad)) > 0

    def _gather_findings(self) -> list[_Findings] | None:
        """Return all ranks' findings of the first bad update since the last check, or None if no update was bad."""
        updates, self._unchecked = self._unchecked, []
        if not self._any_bad([values for update in updates for values in update.values()]):
            return None
        own = next((update.findings() for update in updates if bool(_bad(update.values()))), None)
        everyone = [own]
        if self.accelerator.num_processes > 1:
            everyone = gather_object(everyone)
        found = [findings for findings in everyone if findings is not None]
        return [findings for findings in found if findings[0] == min(found)[0]]

    def _describe(self, ranks: list[_Findings]) -> str:
        (epoch, step), _, _ = ranks[0]
        where = f"at epoch {epoch + 1}, step {step + 1}"
        samples = list(dict.fromkeys(sample for _, own, _ in ranks for sample in own))
        good_rows = sum(good for _, _, good in ranks)
        if not samples:
            return f"the gradient is not finite {where}, but the loss of every sample is finite"
        more = f" and {len(samples) - MAX_NAMED_SAMPLES} more" if len(samples) > MAX_NAMED_SAMPLES else ""
        # Only a few ids, because finding an id may read the index of a shard.
        ids = ", ".join(map(self.sample_id, samples[:MAX_NAMED_SAMPLES])) + more
        if not good_rows and len(samples) > 1:
            return (
                f"the loss is not finite {where} for all {len(samples)} samples ({ids}), so the cause is the weights, "
                f"the learning rate, or one sample that changes the batch statistics"
            )
        return f"the loss is not finite {where} for {len(samples)} of {len(samples) + good_rows} samples ({ids})"


def check_scale(scaler: torch.amp.GradScaler, in_a_row: int, guard: Guard | None, epoch: int, step: int) -> None:
    """Raise UserError if the gradient scaler finds no usable scale. Called after a skipped update.

    ``in_a_row``: number of skipped updates in a row. Gradients are equal on all ranks, so all ranks raise the error.
    """
    scale = scaler.get_scale()
    if scale < LEAST_SCALE or in_a_row >= MOST_OVERFLOWS:
        if guard is not None:
            guard.check()  # its error is more precise, because it names the samples whose loss is not finite
        raise UserError(
            "not-finite",
            f"the gradients are not finite in fp16 at epoch {epoch + 1}, step {step + 1} at any scale "
            f"({in_a_row} updates in a row were skipped, and the gradient scaler is down to {scale:.3g}): use "
            f"--train.precision bf16 or no, lower --optim.lr or set --optim.clip_norm 1; the last checkpoint is kept",
        )


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Restore the gradient scaler from ``state``. If the saved scale is below LEAST_SCALE, only log a warning."""
    if state["scale"] >= LEAST_SCALE:
        scaler.load_state_dict(state)
        return
    text = "the checkpoint's gradient scale is %.3g, at which gradients vanish: starting from %g"
    log.warning(text, state["scale"], scaler.get_scale())


def _bad(values: list[torch.Tensor]) -> torch.Tensor:
    """Return a scalar bool: whether an element of the 1-dimensional tensors is not finite."""
    return ~torch.isfinite(torch.cat(values)).all()


def _norm(tensors: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """Return the Euclidean norm of all elements (0 if there are none). It is finite only if all elements are finite.

    The norm takes 1% of the time of an update. On a CPU, the maximum of all elements takes 20%.
    """
    # Each rank uses its own part of a sharded tensor.
    own = [local(t) for t in tensors if t is not None and t.numel()]
    return get_total_norm(own).to(device) if own else torch.zeros((), device=device)
