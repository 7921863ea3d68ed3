"""ShardLoader: every sample once at any world size, resumed at any step, with the user's functions and bad input."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from train_tools import make_parts, tiny_config

import toolkit
from shards.dataset.index import read_index
from toolkit.data.augment.pipeline import Augmenter
from toolkit.data.shard_batch import ShardBatch
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import RawTransform
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.training.batches import Feed

ORDERS = st.sampled_from(["global", "window", "stored"])


@pytest.fixture(scope="module")
def reader(shard_set: Path) -> ShardReader:
    return ShardReader.of_split(shard_set, "train")


def loaders(reader: ShardReader, world: int, **options: Any) -> list[ShardLoader]:
    """The loaders of all ranks, on images of 16 pixels."""
    options = {"threads": 2, "transform": toolkit.EvalTransform(image_size=16), **options}
    return [ShardLoader(reader, rank=rank, world_size=world, **options) for rank in range(world)]


def used(batch: ShardBatch) -> list[int]:
    return batch.indices[batch.valid.numpy()].tolist()


def updates(ranks: list[ShardLoader]) -> list[Counter[int]]:
    """The samples of each update over all ranks, in the rest of one epoch."""
    found: dict[int, Counter[int]] = {}
    for loader in ranks:
        with loader:
            for batch in loader:
                found.setdefault(batch.step, Counter()).update(used(batch))
    return [found[step] for step in sorted(found)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 16), st.integers(1, 40), st.integers(1, 3), ORDERS, st.integers(0, 2))
def test_every_rank_gets_as_many_batches_and_each_sample_comes_once(
    reader, world, batch_size, accumulation, order, epoch
):
    ranks = loaders(reader, world, batch_size=batch_size, accumulation=accumulation, order=order, window=2)
    seen: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for loader in ranks:
        with loader:
            loader.set_epoch(epoch)
            batches = list(loader)
        assert len(batches) == len(loader) == -(-len(reader) // batch_size) * accumulation
        for batch in batches:
            assert batch.images.shape == (len(batch), 3, 16, 16) and batch.images.dtype == torch.uint8
            assert batch.targets is not None and batch.targets.shape == (len(batch), len(loader.labels))
            seen.update(used(batch))
            sizes[batch.step] += len(used(batch))
    assert seen == Counter(range(len(reader)))
    assert max(sizes.values()) - min(sizes.values()) <= 1 and max(sizes.values()) <= batch_size
    assert sizes == Counter({batch.step: batch.samples for batch in batches})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 20), st.integers(1, 2), ORDERS, st.integers(0, 99))
def test_a_state_continues_at_any_step_and_world_size(reader, before, after, batch_size, accumulation, order, stop):
    options = {"batch_size": batch_size, "order": order, "window": 2, "seed": 7}
    whole = updates(loaders(reader, 1, **options))
    stop %= len(whole) + 1
    states, first = [], Counter[int]()
    for loader in loaders(reader, before, accumulation=accumulation, **options):
        with loader:
            for _, batch in zip(range(stop * accumulation), loader, strict=False):
                first.update(used(batch))
            states.append(json.dumps(loader.state_dict()))
    assert len(set(states)) == 1 and len(states[0]) < 200
    assert first == sum(whole[:stop], Counter())
    ranks = loaders(reader, after, **options)
    for loader in ranks:
        loader.load_state_dict(json.loads(states[0]))
        loader.set_epoch(loader.epoch)
    if stop == len(whole):
        assert [loader.epoch for loader in ranks] == [1] * after
        assert sum(updates(ranks), Counter()) == Counter(range(len(reader)))
    else:
        assert updates(ranks) == whole[stop:]


def jitter(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A crop at a random place, of 24 pixels."""
    top, left = (int(generator.integers(0, side - 24)) for side in image.shape[:2])
    return image[top : top + 24, left : left + 24]


@pytest.mark.parametrize(
    "transform",
    [
        jitter,
        toolkit.TrainTransform(image_size=24, brightness=0.4, randaugment=2, erase=0.5, cutmix=1.0),
        toolkit.TrainTransform(image_size=24, mixup=0.4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)),
    ],
    ids=["function", "cutmix", "mixup"],
)
def test_a_sample_looks_the_same_at_any_world_size_and_number_of_threads(reader: ShardReader, transform):
    found = []
    for world, threads in ((1, 1), (2, 3), (3, 2)):
        images: dict[str, tuple[bytes, list[float]]] = {}
        for loader in loaders(reader, world, batch_size=14, transform=transform, threads=threads, seed=3):
            with loader:
                for batch in loader:
                    assert batch.targets is not None
                    for row in np.flatnonzero(batch.valid.numpy()):
                        pixels = batch.images[row].numpy().tobytes()
                        images[batch.keys[row]] = pixels, batch.targets[row].tolist()
        found.append(images)
    assert len(found[0]) == len(reader)
    assert found[0] == found[1] == found[2]
    with ShardLoader(reader, batch_size=14, transform=transform, seed=3) as loader:
        loader.set_epoch(1)
        other = {key: batch.images[row].numpy().tobytes() for batch in loader for row, key in enumerate(batch.keys)}
    assert sum(other[key] != pixels for key, (pixels, _) in found[0].items()) > len(reader) // 2


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_the_pixels_of_evaluation_are_those_of_predictions(reader: ShardReader, geometry):
    crop = toolkit.EvalTransform(image_size=32, geometry=geometry)
    predicted = RawTransform(Preprocessing(32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    with ShardLoader(reader, batch_size=8, transform=crop, order="stored") as loader:
        batch = next(iter(loader))
    for image, index in zip(batch.images, batch.indices, strict=True):
        difference = image.permute(1, 2, 0).int() - torch.from_numpy(predicted(reader.image_bytes(int(index)))).int()
        assert difference.abs().max() <= (1 if geometry == "device" else 0)
    assert batch.keys == [reader.key(int(index)) for index in batch.indices]


@pytest.mark.parametrize("geometry", ["cpu", "device"])
@pytest.mark.parametrize("augment", [{}, {"brightness": 0.4}])
def test_normalised_pixels_are_those_of_a_training(reader: ShardReader, geometry, augment):
    """To the bit, although the public class computes them in another order of memory."""
    rgb: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    transform = toolkit.TrainTransform(image_size=32, geometry=geometry, **augment, **rgb)
    with ShardLoader(reader, batch_size=8, transform=transform) as loader:
        ours = [batch.images for batch in loader]
        augmenter, normal = Augmenter(transform, 0), Preprocessing(32, 1.0, **rgb)
        for batch, images in zip(loader.decoded(0), ours, strict=True):
            pixels, _ = augmenter(batch.images, torch.zeros(len(images), 1), batch.micro_batch, 0)
            assert torch.equal(normal.normalize(pixels), images) and images.is_contiguous()


def test_epochs_follow_each_other_and_a_broken_one_starts_again(reader: ShardReader):
    with ShardLoader(reader, batch_size=16, transform=toolkit.EvalTransform(image_size=16)) as loader:
        epochs = [[index for batch in loader for index in used(batch)] for _ in range(2)]
        assert loader.epoch == 2 and epochs[0] != epochs[1]
        loader.set_epoch(0)
        first = next(iter(loader))
        assert loader.state_dict()["samples"] == len(used(first))
        assert [index for batch in loader for index in used(batch)] == epochs[0]
        loader.set_epoch(1)
        assert [index for batch in loader for index in used(batch)] == epochs[1]


def test_a_batch_stays_as_it_is(reader: ShardReader):
    for transform in (toolkit.EvalTransform(image_size=16), toolkit.EvalTransform(image_size=16, geometry="device")):
        with ShardLoader(reader, batch_size=4, transform=transform, order="stored") as loader:
            kept = list(loader)
            again = [batch.images.clone() for batch in loader]
        assert all(torch.equal(batch.images, other) for batch, other in zip(kept, again, strict=True))


def test_two_loaders_share_their_threads(shard_set: Path):
    before = {thread.ident for thread in threading.enumerate()}
    small = toolkit.EvalTransform(image_size=16)
    with (
        ShardLoader(shard_set, split="train", batch_size=8, transform=small, threads=3, seed=1) as train,
        ShardLoader(shard_set, split="val", batch_size=2, transform=small, threads=3, order="stored") as val,
    ):
        pairs = [(used(one), used(other)) for one, other in zip(train, val, strict=False)]
        new = [thread for thread in threading.enumerate() if thread.ident not in before]
        assert 1 <= len([thread for thread in new if thread.name.startswith("decode")]) <= 3
        assert len(pairs) == min(len(train), len(val)) and [i for _, part in pairs for i in part] == list(
            range(len(pairs) * 2)
        )
    assert not [t for t in threading.enumerate() if t.ident not in before and t.name.startswith("decode")]


def test_a_loader_that_nobody_closes_leaves_no_threads(reader: ShardReader):
    before = set(threading.enumerate())
    forgotten = ShardLoader(reader, batch_size=8, transform=toolkit.EvalTransform(image_size=16), threads=5)
    next(iter(forgotten))
    started = [t for t in set(threading.enumerate()) - before if t.name.startswith("decode")]
    assert started
    del forgotten
    gc.collect()
    for thread in started:
        thread.join(10)
    assert not [thread for thread in started if thread.is_alive()]


def test_members_are_decoded_in_the_threads(reader: ShardReader):
    names: set[str] = set()

    def parse(data: bytes) -> Any:
        names.add(threading.current_thread().name)
        return json.loads(data)

    with ShardLoader(reader, batch_size=8, transform=jitter, fields={"json": parse}) as loader:
        for batch in loader:
            targets = [[float(value) for value in record["multi_hot"]] for record in batch.fields["json"]]
            assert batch.targets is not None and batch.targets.tolist() == targets
    assert all(name.startswith("decode") for name in names)
    with ShardLoader(reader, batch_size=8, fields=("json",), transform=jitter) as loader:
        batch = next(iter(loader))
        assert [json.loads(data)["multi_hot"] for data in batch.fields["json"]] == batch.targets.int().tolist()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def damaged(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A set whose training images have one of zeros, and the key of this image."""
    folder = shutil.copytree(shard_set, tmp_path_factory.mktemp("damaged") / "set")
    sample = read_index(folder / "train-00000.tar")[0].to_pylist()[0]
    with open(folder / "train-00000.tar", "r+b") as stream:
        stream.seek(sample["image_offset"])
        stream.write(bytes(sample["image_size"]))
    return folder, sample["key"]


@pytest.mark.parametrize("transform", [jitter, toolkit.EvalTransform(image_size=24)], ids=["function", "own"])
def test_damaged_images_stop_the_loader_or_are_masked_or_replaced(damaged: tuple[Path, str], transform, caplog):
    folder, key = damaged
    options: dict[str, Any] = {"split": "train", "batch_size": 4, "order": "stored", "transform": transform}
    with ShardLoader(folder, **options) as loader, fails("image-unreadable", "train-00000.tar", key):
        list(loader)
    with ShardLoader(folder, on_error="mask", max_errors=0.5, **options) as loader:
        batches = list(loader)
        assert len(loader.errors) == 1 and key in loader.errors[0]
    assert sum(int(batch.valid.sum()) for batch in batches) == loader.num_samples - 1
    assert batches[0].valid.tolist() == [False, True, True, True] and not batches[0].images[0].any()
    assert list(batches[0].errors) == [0]
    with ShardLoader(folder, on_error="mask", max_errors=0.5, **{**options, "batch_size": 1}) as loader:
        assert not next(iter(loader)).images.any()  # the shape of the results is that of another sample
    with ShardLoader(folder, on_error="replace", max_errors=0.5, **options) as loader:
        batch = next(iter(loader))
    assert batch.valid.all() and batch.images[0].any() and key not in batch.keys
    assert batch.targets is not None
    assert batch.targets[0].int().tolist() == loader.reader.targets_of(batch.indices[:1])[0].tolist()
    with ShardLoader(folder, on_error="mask", max_errors=0.0, **options) as loader, fails("too-many-bad", key):
        list(loader)


def test_ranks_come_from_the_environment(shard_set: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Once there is a warning, because processes without a process group would train models of their own."""
    monkeypatch.setattr("toolkit.distributed.environment._warned", threading.Event())
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    for _ in range(2):
        with ShardLoader(toolkit.open_shards(shard_set, "train"), batch_size=8, transform=jitter) as loader:
            assert (loader.rank, loader.world_size) == (2, 5)
            next(iter(loader))
    assert [record.getMessage()[:15] for record in caplog.records] == ["WORLD_SIZE is 5"]


def test_posters_train_reads_through_it(shard_set: Path, tmp_path: Path):
    _, setup = make_parts(shard_set, tiny_config(), tmp_path)
    feed = setup.inputs.feed(setup)
    assert isinstance(feed, Feed) and isinstance(feed.train, ShardLoader)
    with ShardLoader(shard_set, split="train", batch_size=setup.plan.global_batch, seed=0, transform=jitter) as loader:
        ours = [used(batch) for batch in loader]
    theirs = [batch.micro_batch.indices[batch.micro_batch.valid].tolist() for batch in feed.batches(0, 0)]
    feed.close()
    assert ours == theirs
