"""Handle images that cannot be decoded: replace or mask them, log each image once, and stop the run if too many fail.

A masked sample gets no weight. A replaced sample gets the image and labels of another sample, its substitute. The
substitute depends only on seed, epoch, sample and attempt, so world size and resumes do not change it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from shards.errors import UserError
from toolkit.config.schema import OnError
from toolkit.data.sampling.shuffle import key_of

log = logging.getLogger(__name__)

ATTEMPTS = 8  # number of substitutes to try before the sample is masked
MAX_LISTED = 10


@dataclass(frozen=True)
class FaultPolicy:
    """How a loader handles images that cannot be decoded."""

    on_error: OnError = "stop"
    limit: float = 0.0
    """Largest accepted share of samples that cannot be decoded. A larger share raises UserError."""
    seed: int = 0
    log_each: bool = True
    """Whether to log each image that cannot be decoded. False if the caller reports these images."""
    option: str = "--data.max_errors"
    """Name of the option with ``limit``, for messages."""


#: The policy of predictions, without a limit. A damaged image becomes a row with an error, which the caller reports.
KEEP_ERRORS = FaultPolicy("mask", limit=1.0, log_each=False)


class Faults:
    """Record of the samples that could not be decoded. Many threads can use it."""

    def __init__(self, policy: FaultPolicy, num_samples: int) -> None:
        self.policy, self.num_samples = policy, num_samples
        self.found: dict[int, str] = {}
        """Sample → text with its location and the reason why it could not be decoded."""
        self._lock = threading.Lock()

    def report(self, sample: int, message: str) -> None:
        """Record a sample that cannot be decoded. Log each sample once."""
        with self._lock:
            known = sample in self.found
            self.found[sample] = message
        if self.policy.log_each and not known and self.policy.on_error != "stop":
            done = "replaced" if self.policy.on_error == "replace" else "left out"
            log.warning("%s; the sample is %s", message, done)

    def forget(self) -> None:
        """Delete all records, to limit the memory of callers that process millions of samples."""
        with self._lock:
            self.found.clear()

    def substitute(self, epoch: int, sample: int, attempt: int) -> int:
        """Return a random sample to use instead of ``sample``. Each ``attempt`` (0, 1, ...) is a new draw."""
        return key_of(self.policy.seed, epoch, sample, attempt) % self.num_samples

    def check(self) -> None:
        """Raise UserError if more samples cannot be decoded than the policy allows."""
        check_limit(self.found, self.policy, self.num_samples)


def check_limit(found: dict[int, str], policy: FaultPolicy, num_samples: int) -> None:
    """Raise UserError, which lists the damaged samples, if more samples are damaged than ``policy`` allows."""
    if not found or (policy.on_error != "stop" and len(found) <= policy.limit * num_samples):
        return
    lines = [found[sample] for sample in sorted(found)]
    if policy.on_error == "stop" and len(lines) == 1:
        raise UserError("image-unreadable", f"{lines[0]}; run `posters shards verify` on the set")
    rest = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    listed = "; ".join(lines[:MAX_LISTED]) + rest
    allowed = "" if policy.on_error == "stop" else f", more than {policy.option} {policy.limit:g} allows"
    raise UserError(
        "too-many-bad",
        f"{len(lines)} of {num_samples} samples cannot be decoded{allowed}; "
        f"run `posters shards verify` on the set. The samples: {listed}",
    )
