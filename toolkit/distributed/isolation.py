"""Restore accelerate's settings and the random generators of the user's process after a function of the toolkit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from toolkit.device.compat import shared_settings


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Start with accelerate's defaults. At the end, restore the user's settings and random generators.

    Otherwise a second training in a process could not have another precision, and a training would seed the random
    generators of the user's program.
    """
    settings = shared_settings()
    before = [dict(kept) for kept in settings]
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    for kept in settings:
        kept.clear()
    try:
        yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        for kept, values in zip(settings, before, strict=True):
            kept.clear()
            kept.update(values)
