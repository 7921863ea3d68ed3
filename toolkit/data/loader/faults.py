"""What happens when an image cannot be decoded: replaced or masked, told once, counted, and at some point enough.

A substitute is a function of (seed, epoch, sample, attempt), so a run is the same at any world size and after a resume.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from shards.errors import UserError
from toolkit.config.schema import OnError
from toolkit.data.sampling.shuffle import key_of

log = logging.getLogger(__name__)

ATTEMPTS = 8  # substitutes tried before the sample is masked
MAX_LISTED = 10


@dataclass(frozen=True)
class FaultPolicy:
    """How a loader answers to undecodable images."""

    on_error: OnError = "stop"
    limit: float = 0.0
    """Share of the source's samples that may be undecodable before UserError ends the run."""
    seed: int = 0
    tell: bool = True
    """Log each one; False for callers that report them in their own way."""


#: For predictions: a damaged image is a row with an error, told by the caller, and never too many.
KEEP_ERRORS = FaultPolicy("mask", limit=1.0, tell=False)


class Faults:
    """The undecodable samples met so far. Threads report to it."""

    def __init__(self, policy: FaultPolicy, num_samples: int) -> None:
        self.policy, self.num_samples = policy, num_samples
        self.found: dict[int, str] = {}
        """Sample → where it lies and why it could not be decoded."""
        self._lock = threading.Lock()

    def report(self, sample: int, message: str) -> None:
        """Note an undecodable sample; the first time it is logged."""
        with self._lock:
            known = sample in self.found
            self.found[sample] = message
        if self.policy.tell and not known and self.policy.on_error != "stop":
            done = "replaced" if self.policy.on_error == "replace" else "left out"
            log.warning("%s; %s", message, done)

    def forget(self) -> None:
        """Drop what was noted: for callers that report damage in their own way and go on for millions of samples."""
        with self._lock:
            self.found.clear()

    def substitute(self, epoch: int, sample: int, attempt: int) -> int:
        """The sample that stands in for ``sample`` at the ``attempt``-th try."""
        return key_of(self.policy.seed, epoch, sample, attempt) % self.num_samples

    def check(self) -> None:
        """Raise UserError if there are more than the policy bears."""
        check_limit(self.found, self.policy, self.num_samples)


def check_limit(found: dict[int, str], policy: FaultPolicy, num_samples: int) -> None:
    """Raise UserError, with the list, if more samples are undecodable than ``policy`` bears."""
    if not found or (policy.on_error != "stop" and len(found) <= policy.limit * num_samples):
        return
    lines = [found[sample] for sample in sorted(found)]
    if len(lines) == 1:
        raise UserError("image-unreadable", f"{lines[0]}; run `posters shards verify` on the set")
    listed = "; ".join(lines[:MAX_LISTED]) + (
        f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    )
    raise UserError(
        "too-many-bad",
        f"{len(lines)} of {num_samples} samples cannot be decoded, more than --data.max_errors "
        f"{policy.limit:g} allows; run `posters shards verify` on the set: {listed}",
    )
