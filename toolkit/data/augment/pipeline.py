"""Augment training pixels after crop and flip, on the device, for a whole micro-batch at once.

First, the operations of AUGMENTATIONS (config/augmentation_registry.py) are applied, then the augmentation of the user.
At the end, samples are mixed.
Every random number is a hash of (seed, epoch, key, purpose), computed on the CPU (sampling/rng.py). A sample therefore
gets the same pixels on any rank, for any world size and accumulation, and in any row of a batch. Each operation has its
own random numbers. No operation sums over a batch, so pixels are bit-identical on two GPUs of the same type.
"""

from __future__ import annotations

import torch

from shards.extras import load_object
from toolkit.config.augmentation_registry import AUGMENTATIONS, AugmentConfig
from toolkit.config.extensions import checked_tensor, make
from toolkit.data.augment.mixup import draw_pairs, mix
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sampling.rng import Stream, uniforms


class Augmenter:
    """All augmentations that ``config`` switches on, as one function."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.steps = [load_object(entry.done_by) for entry in AUGMENTATIONS if entry.on(config)]
        self.own = None if config.name is None else make("augmentation", config.name, config.options, "augment.options")
        self.active = bool(self.steps) or self.own is not None or config.mixes

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, micro_batch: MicroBatch, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the augmented images and targets of ``micro_batch`` in ``epoch``. The arguments are not changed.

        images: (n, S, S, 3) RGB values from 0 to 255, uint8 or float, on any device.
        targets: (n, G) float, on the same device. Mixing makes the returned targets fractional.
        Returns images as float32, in any memory layout. If no augmentation is on, returns the arguments. Mixing needs
        TrainPlan.group_size 2. Raises ValueError if images, targets and micro_batch differ in length. Raises UserError
        if the user's augmentation returns another shape.
        """
        if not len(images) == len(targets) == len(micro_batch.indices):
            lengths = f"{len(images)}, {len(targets)} and {len(micro_batch.indices)}"
            raise ValueError(f"images, targets and micro_batch differ in length: {lengths}")
        if not self.active:
            return images, targets
        config, seed, keys = self.config, self.seed, micro_batch.keys
        # One plane per colour is several times faster on CPUs than interleaved colours, and no slower on GPUs.
        n, height, width, colours = images.shape
        planes = torch.empty((n, colours, height, width), dtype=torch.float32, device=images.device)
        planes.copy_(images.permute(0, 3, 1, 2))
        for step in self.steps:
            planes = step(planes, config, seed, epoch, keys)
        if self.own is not None:
            found = self.own(planes, lambda count: uniforms(seed, epoch, keys, count, Stream.OWN))
            shape, name = tuple(planes.shape), f"augment.name {config.name}"
            planes = checked_tensor(found, shape, name, f"images of shape {shape}", "images").float()
        if config.mixes:
            planes, targets = mix(planes, targets, draw_pairs(config, planes.shape[3], micro_batch, seed, epoch))
        return planes.permute(0, 2, 3, 1), targets
