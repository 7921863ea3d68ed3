"""Handling of images that cannot be decoded: replace or mask them, log each once, stop the run if there are many.

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
    """How a loader handles images that cannot be decoded."""

    on_error: OnError = "stop"
    limit: float = 0.0
    """Largest share of the source's samples that cannot be decoded; above it UserError ends the run."""
    seed: int = 0
    tell: bool = True
    """Log each image; False if the caller reports them."""


#: For predictions: a damaged image is a row with an error, which the caller reports. There is no limit.
KEEP_ERRORS = FaultPolicy("mask", limit=1.0, tell=False)


class Faults:
    """The samples that could not be decoded so far. Safe to use from many threads."""

    def __init__(self, policy: FaultPolicy, num_samples: int) -> None:
        self.policy, self.num_samples = policy, num_samples
        self.found: dict[int, str] = {}
        """Sample → its location and why it could not be decoded."""
        self._lock = threading.Lock()

    def report(self, sample: int, message: str) -> None:
        """Record a sample that cannot be decoded; log it the first time."""
        with self._lock:
            known = sample in self.found
            self.found[sample] = message
        if self.policy.tell and not known and self.policy.on_error != "stop":
            done = "replaced" if self.policy.on_error == "replace" else "left out"
            log.warning("%s; %s", message, done)

    def forget(self) -> None:
        """Delete all records, for callers that report damaged images themselves and process millions of samples."""
        with self._lock:
            self.found.clear()

    def substitute(self, epoch: int, sample: int, attempt: int) -> int:
        """Return the substitute for ``sample`` at attempt ``attempt``."""
        return key_of(self.policy.seed, epoch, sample, attempt) % self.num_samples

    def check(self) -> None:
        """Raise UserError if there are more than the policy allows."""
        check_limit(self.found, self.policy, self.num_samples)


def check_limit(found: dict[int, str], policy: FaultPolicy, num_samples: int) -> None:
    """Raise UserError, with a list, if more samples cannot be decoded than ``policy`` allows."""
    if not found or (policy.on_error != "stop" and len(found) <= policy.limit * num_samples):
        return
    lines = [found[sample] for sample in sorted(found)]
    if len(lines) == 1:
        raise UserError("image-unreadable", f"{lines[0]}; run `posters shards verify` on the set")
    rest = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    listed = "; ".join(lines[:MAX_LISTED]) + rest
    raise UserError(
        "too-many-bad",
        f"{len(lines)} of {num_samples} samples cannot be decoded, more than --data.max_errors "
        f"{policy.limit:g} allows; run `posters shards verify` on the set: {listed}",
    )
