"""The augmenter: every option does something, nothing is done unasked, and no rank, batch or order plays a part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.pipeline import Augmenter
from toolkit.data.augment.random_erasing import erased_boxes
from toolkit.data.sampling.plan import MicroBatch, TrainPlan
from toolkit.data.sampling.repeat_factor import RepeatOrder

EVERYTHING = AugmentConfig(
    brightness=0.4, contrast=0.4, saturation=0.4, randaugment=2, erase=0.5, mixup=0.4, cutmix=1.0
)
OPTIONS: dict[str, Any] = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "randaugment": 1,
    "erase": 1.0,
    "mixup": 0.4,
    "cutmix": 1.0,
}
SIDE, GENRES = 10, 4


def pictures(samples: np.ndarray) -> torch.Tensor:
    """(n, S, S, 3) uint8: each sample's own pixels."""
    shape = SIDE, SIDE, 3
    rows = [np.random.default_rng(sample).integers(0, 256, shape, np.uint8) for sample in samples.tolist()]
    return torch.from_numpy(np.stack(rows))


def labels(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((samples[:, None] >> np.arange(GENRES)) % 2).float()


def whole(n: int) -> MicroBatch:
    return MicroBatch(np.arange(n), np.ones(n, dtype=bool))


def augmented(
    config: AugmentConfig, micro_batch: MicroBatch, seed: int = 0, epoch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    return Augmenter(config, seed)(pictures(micro_batch.indices), labels(micro_batch.indices), micro_batch, epoch)


def test_nothing_switched_on_gives_the_very_same_objects():
    images, targets = pictures(np.arange(6)), labels(np.arange(6))
    augmenter = Augmenter(AugmentConfig(), 0)
    assert not augmenter.active
    found = augmenter(images, targets, whole(6), 0)
    assert found[0] is images and found[1] is targets


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_does_something_to_pixels(name: str):
    config = replace(AugmentConfig(), **{name: OPTIONS[name]})
    assert Augmenter(config, 0).active
    micro_batch = whole(40)
    images, targets = augmented(config, micro_batch)
    before = pictures(micro_batch.indices)
    assert images.shape == before.shape and images.dtype == torch.float32
    changed = (images != before).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.5
    assert images.min() >= 0 and images.max() <= 255
    assert torch.equal(targets, labels(micro_batch.indices)) == (name not in ("mixup", "cutmix"))


@pytest.mark.parametrize("seed, epoch", [(1, 0), (0, 1)])
def test_another_seed_or_epoch_draws_other_numbers(seed: int, epoch: int):
    first, other = augmented(EVERYTHING, whole(8)), augmented(EVERYTHING, whole(8), seed, epoch)
    assert not torch.equal(first[0], other[0])


def test_another_draw_of_a_sample_is_augmented_in_another_way():
    micro_batch = whole(12)
    again = replace(micro_batch, repeat=np.ones(12, dtype=np.int64))
    for name, value in OPTIONS.items():
        config = replace(AugmentConfig(), **{name: value})
        assert not torch.equal(augmented(config, micro_batch)[0], augmented(config, again)[0]), name


def test_the_arguments_stay_as_they_are():
    micro_batch = whole(20)
    for images in (pictures(micro_batch.indices), pictures(micro_batch.indices).float()):
        before, targets = images.clone(), labels(micro_batch.indices)
        Augmenter(EVERYTHING, 0)(images, targets, micro_batch, 0)
        assert torch.equal(images, before) and torch.equal(targets, labels(micro_batch.indices))


def test_bytes_half_and_single_precision_give_the_same():
    micro_batch = whole(16)
    images, targets = pictures(micro_batch.indices), labels(micro_batch.indices)
    augmenter = Augmenter(EVERYTHING, 0)
    expected = augmenter(images, targets, micro_batch, 3)[0]
    assert torch.equal(augmenter(images.half(), targets, micro_batch, 3)[0], expected)
    # four bytes a pixel, as the CPU's cut leaves them
    buffer = torch.zeros((16, SIDE, SIDE, 4), dtype=torch.uint8)
    buffer[..., :3] = images
    assert torch.equal(augmenter(buffer[..., :3], targets, micro_batch, 3)[0], expected)


def test_switching_an_operation_on_does_not_change_what_another_draws():
    """Where the rectangle of erasing lies, with and without all the others."""
    micro_batch, seed, epoch = whole(40), 4, 2
    alone = AugmentConfig(erase=0.5)
    with_others = replace(alone, brightness=0.4, randaugment=2)
    erased, both = augmented(alone, micro_batch, seed, epoch)[0], augmented(with_others, micro_batch, seed, epoch)[0]
    boxes = erased_boxes(SIDE, 0.5, seed, epoch, micro_batch.keys)
    assert (boxes[:, 2] > 0).any()
    for row, (left, top, right, bottom) in enumerate(boxes.tolist()):
        assert torch.equal(erased[row, top:bottom, left:right], both[row, top:bottom, left:right])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 24),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
    st.booleans(),
)
def test_pixels_and_targets_are_the_same_at_any_world_size_and_accumulation(
    n, batch, world, accumulation, seed, repeated
):
    factors = np.ones(n) + repeated * np.random.default_rng(seed).random(n) * 2
    plan = TrainPlan(RepeatOrder(factors, seed), batch, group_size=2)
    augmenter = Augmenter(EVERYTHING, seed)

    def epoch_of(world: int, accumulation: int) -> dict[int, tuple[bytes, bytes]]:
        found: dict[int, tuple[bytes, bytes]] = {}
        for rank in range(world):
            for micro_batch in plan.rest_of_epoch(1, rank, world, accumulation):
                images, targets = augmenter(pictures(micro_batch.indices), labels(micro_batch.indices), micro_batch, 1)
                for row in np.flatnonzero(micro_batch.valid):
                    key = int(micro_batch.keys[row])
                    assert key not in found
                    found[key] = images[row].numpy().tobytes(), targets[row].numpy().tobytes()
        return found

    alone = epoch_of(1, 1)
    assert len(alone) == plan.num_samples
    assert epoch_of(world, accumulation) == alone


def test_dealing_one_by_one_would_fail_that_test():
    """The negative control: partners that are parted are mixed with others, or not at all."""
    plans = [TrainPlan(RepeatOrder(np.ones(16), 0), 16, group_size=deal) for deal in (1, 2)]
    parted = []
    for plan in plans:
        targets: dict[int, list[float]] = {}
        for world in (1, 2):
            for rank in range(world):
                for micro_batch in plan.rest_of_epoch(0, rank, world):
                    found = augmented(AugmentConfig(mixup=1.0), micro_batch)[1]
                    for row, sample in enumerate(micro_batch.indices.tolist()):
                        targets.setdefault(sample, []).append(float(found[row].sum()))
        parted.append(any(a != b for a, b in targets.values()))
    assert parted == [True, False]


def test_masked_samples_leave_their_partners_alone():
    micro_batch = replace(whole(4), valid=np.array([True, False, True, True]))
    images, targets = augmented(AugmentConfig(mixup=1.0), micro_batch)
    assert torch.equal(images[:2], pictures(micro_batch.indices[:2]).float())
    assert torch.equal(targets[:2], labels(micro_batch.indices[:2]))
    assert not torch.equal(images[2:], pictures(micro_batch.indices[2:]).float())


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="differ in length: 3, 2 and 3"):
        Augmenter(EVERYTHING, 0)(pictures(np.arange(3)), labels(np.arange(2)), whole(3), 0)


@pytest.mark.gpu
def test_a_gpu_does_the_same():
    micro_batch = whole(64)
    images, targets = pictures(micro_batch.indices), labels(micro_batch.indices)
    expected = Augmenter(EVERYTHING, 0)(images, targets, micro_batch, 0)
    found = Augmenter(EVERYTHING, 0)(images.cuda(), targets.cuda(), micro_batch, 0)
    # thresholds and histograms turn a difference in the last bit into a level or more, in few places
    assert ((found[0].cpu() - expected[0]).abs() > 0.01).float().mean() < 0.01
    torch.testing.assert_close(found[1].cpu(), expected[1])
