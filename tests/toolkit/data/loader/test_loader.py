"""The loader: plan order at any number of threads, the same pixels at any world size, damage answered as configured."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.index import read_index
from shards.inputs.images import ANY, decode
from toolkit.config.schema import DataConfig
from toolkit.data.loader.faults import KEEP_ERRORS, FaultPolicy
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.sampling.plan import EvalPlan, MicroBatch, TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder, WindowOrder
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Transforms, eval_transforms, file_transforms, train_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.device.defaults import GPU_THREADS, decode_threads

CPU = torch.device("cpu")
PLAIN = Preprocessing(32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Numbers:
    """A source whose sample k is the number k, or damage."""

    def __init__(self, count: int, damaged: frozenset[int] = frozenset()) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> memoryview:
        if index in self.damaged:
            raise Undecodable("damaged on purpose")
        return memoryview(bytearray(index.to_bytes(4, "big")))

    def where(self, index: int) -> str:
        return f"numbers.tar member '{index}' at offset {4 * index}"


def pixels(data: bytes) -> np.ndarray:
    """2 x 2 pixels that spell the number."""
    return np.frombuffer(bytearray(data * 3), dtype=np.uint8).reshape(2, 2, 3)


NUMBERS: Transforms = file_transforms(2, pixels)


def spelt(batch: Batch) -> list[int]:
    """The numbers that the batch's valid rows show."""
    rows = batch.images[torch.from_numpy(batch.micro_batch.valid)].reshape(-1, 12)[:, :4].numpy()
    return [int.from_bytes(bytes(row), "big") for row in rows.astype(np.uint8)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 200),
    st.booleans(),
)
def test_every_rank_gets_its_plan_from_any_step_on(n, batch, world, threads, prefetch, step, window):
    order = WindowOrder([min(10, n - k) for k in range(0, n, 10)], 2, 5) if window else GlobalOrder(n, 5)
    plan = TrainPlan(order, batch)
    step %= plan.steps_per_epoch
    seen: list[int] = []
    for rank in range(world):
        with Loader(Numbers(n), threads, prefetch) as loader:
            micro_batches = list(plan.rest_of_epoch(2, rank, world, first_step=step))
            found = 0
            for micro_batch, got in zip(micro_batches, loader.batches(iter(micro_batches), NUMBERS), strict=True):
                assert spelt(got) == micro_batch.indices[micro_batch.valid].tolist()
                seen += spelt(got)
                found += 1
            assert found == plan.steps_per_epoch - step
    expected = [i for t in range(step, plan.steps_per_epoch) for i in plan.keys(2, t).tolist()]
    assert sorted(seen) == sorted(expected)


def test_memory_is_not_used_again_before_the_next_batch_is_asked_for():
    with Loader(Numbers(400), 4, 3) as loader:
        for batch in loader.batches(EvalPlan(400, 8).micro_batches(0, 1), NUMBERS):
            before = spelt(batch)
            time.sleep(0.002)  # the threads go on meanwhile
            assert spelt(batch) == before == batch.micro_batch.indices.tolist()


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_a_sample_has_the_same_pixels_at_any_world_size_and_number_of_threads(shard_set: Path, geometry):
    reader = ShardReader.of_split(shard_set, "train")
    plan = TrainPlan(GlobalOrder(len(reader), 0), 16)
    transforms = train_transforms(reader, DataConfig(image_size=32, geometry=geometry), 0, 4, CPU)
    pictures: list[dict[int, bytes]] = []
    for world, threads in ((1, 1), (1, 4), (2, 2), (4, 3)):
        found = {}
        for rank in range(world):
            with Loader(reader, threads, 2) as loader:
                for batch in loader.batches(plan.rest_of_epoch(4, rank, world), transforms):
                    for row in np.flatnonzero(batch.micro_batch.valid):
                        found[int(batch.micro_batch.indices[row])] = batch.images[row].numpy().tobytes()
        pictures.append(found)
    assert len(pictures[0]) == len(reader)
    assert all(other == pictures[0] for other in pictures[1:])


def test_geometry_on_the_device_gives_the_pixels_of_the_cpu(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    plan = TrainPlan(GlobalOrder(len(reader), 0), 16)
    both = []
    for geometry in ("cpu", "device"):
        transforms = train_transforms(reader, DataConfig(image_size=64, geometry=geometry), 0, 0, CPU)
        with Loader(reader, 2, 2) as loader:
            both.append([b.images.float().clone() for b in loader.batches(plan.rest_of_epoch(0, 0, 1), transforms)])
    for cpu, device in zip(*both, strict=True):
        assert (cpu - device).abs().mean() < 0.2


DAMAGED = frozenset({3, 17, 40})


def run(policy: FaultPolicy, n: int = 60, world: int = 1, epoch: int = 1) -> tuple[dict[int, list[int]], list[Batch]]:
    """Step → numbers shown, over all ranks; and the last rank's batches."""
    plan = TrainPlan(GlobalOrder(n, 0), 12)
    steps: dict[int, list[int]] = {}
    batches: list[Batch] = []
    for rank in range(world):
        with Loader(Numbers(n, DAMAGED), 3, 2, policy=policy) as loader:
            for step, batch in enumerate(loader.batches(plan.rest_of_epoch(epoch, rank, world), NUMBERS, epoch)):
                steps.setdefault(step, []).extend(spelt(batch))
                batches.append(replace(batch, images=batch.images.clone()))
    return {step: sorted(numbers) for step, numbers in steps.items()}, batches


def test_a_damaged_sample_is_replaced_by_the_same_one_at_any_world_size(caplog: pytest.LogCaptureFixture):
    policy = FaultPolicy("replace", limit=0.1, seed=4)
    alone, batches = run(policy)
    assert all(batch.micro_batch.valid.all() and not batch.errors for batch in batches)
    shown = sorted(number for numbers in alone.values() for number in numbers)
    assert len(shown) == 60 and set(shown) == set(range(60)) - DAMAGED
    for line in caplog.messages:
        assert "numbers.tar member" in line and "offset" in line and line.endswith("; the sample is replaced")
    assert len(caplog.messages) == 3  # each is told once, also where a substitute was damaged too
    assert run(policy, world=2)[0] == alone == run(policy, world=3)[0]
    assert run(policy, epoch=2)[0] != alone


def test_or_masked(caplog: pytest.LogCaptureFixture):
    steps, batches = run(FaultPolicy("mask", limit=0.1))
    shown = sorted(number for numbers in steps.values() for number in numbers)
    assert shown == sorted(set(range(60)) - DAMAGED)
    for batch in batches:
        for row, problem in batch.errors.items():
            assert not batch.micro_batch.valid[row] and int(batch.micro_batch.indices[row]) in DAMAGED
            assert problem == "damaged on purpose" and not batch.images[row].any()
    assert sum(len(batch.errors) for batch in batches) == 3
    assert all(line.endswith("; the sample is left out") for line in caplog.messages)


def test_damaged_padding_is_nobodys_error():
    micro_batch = MicroBatch(np.array([1, 3]), np.array([True, False]))
    with Loader(Numbers(9, DAMAGED), 1, 1, policy=KEEP_ERRORS) as loader:
        (batch,) = loader.batches([micro_batch], NUMBERS)
    assert batch.errors == {} and batch.micro_batch.valid.tolist() == [True, False]


def test_or_stops_the_run_with_its_place():
    with fails("image-unreadable", "numbers.tar member", "posters shards verify"):
        run(FaultPolicy("stop"))


@pytest.mark.parametrize("on_error", ["replace", "mask"])
def test_too_many_stop_the_run_with_the_list(on_error):
    with fails("too-many-bad", "3 of 60 samples", "--data.max_errors", *(f"member '{sample}'" for sample in DAMAGED)):
        run(FaultPolicy(on_error, limit=2 / 60))


def test_a_source_without_one_sound_sample_ends():
    with Loader(Numbers(4, frozenset(range(4))), 2, 2, policy=FaultPolicy("replace", 1.0)) as loader:
        batches = list(loader.batches(TrainPlan(GlobalOrder(4, 0), 4).rest_of_epoch(0, 0, 1), NUMBERS))
    assert not batches[0].micro_batch.valid.any() and len(batches[0].errors) == 4


def test_a_mistake_in_the_code_is_no_damaged_image():
    def broken(data: bytes) -> np.ndarray:
        raise KeyError("a bug")

    with Loader(Numbers(5), 2, 2, policy=KEEP_ERRORS) as loader, pytest.raises(KeyError):
        list(loader.batches(EvalPlan(5, 5).micro_batches(0, 1), file_transforms(2, broken)))


@pytest.fixture
def damaged(shard_set: Path, tmp_path: Path) -> tuple[Path, str]:
    """A shard set with one image overwritten by zeros, its size unchanged; and that sample's key."""
    folder = shutil.copytree(shard_set, tmp_path / "set")
    tar = folder / "test-00000.tar"
    table, _ = read_index(tar)
    row = table.to_pylist()[2]
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] : row["image_offset"] + row["image_size"]] = bytes(row["image_size"])
    tar.write_bytes(content)
    return folder, row["key"]


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_a_damaged_image_in_a_shard(damaged: tuple[Path, str], geometry):
    folder, key = damaged
    reader = ShardReader.of_split(folder, "test")
    transforms = eval_transforms(reader, PLAIN, geometry, CPU)
    plan = EvalPlan(len(reader), 4)
    with Loader(reader, 2, 2) as loader, fails("image-unreadable", "test-00000.tar", key, "offset"):
        list(loader.batches(plan.micro_batches(0, 1), transforms))
    with Loader(reader, 2, 2, policy=KEEP_ERRORS) as loader:
        batches = [(b, b.images.clone()) for b in loader.batches(plan.micro_batches(0, 1), transforms)]
    first, images = batches[0]
    assert first.errors == {2: "not an image (no known picture format)"} and not any(b.errors for b, _ in batches[1:])
    assert not images[2].any() and images[1].any()
    with Loader(reader, 2, 2, policy=FaultPolicy("replace", 1.0)) as loader:
        batches = [(b, b.images.clone()) for b in loader.batches(plan.micro_batches(0, 1), transforms)]
    first, images = batches[0]
    other = int(first.micro_batch.indices[2])
    assert other != 2 and first.micro_batch.valid.all()
    expected = PLAIN.square(decode(reader.image_bytes(other), ANY))
    assert np.abs(images[2].float().numpy() - expected).mean() < 1.5  # decoded at half size


def test_threads_end_with_the_loader_and_a_pass_left_half_way_harms_no_other(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    transforms = eval_transforms(reader, PLAIN, "cpu", CPU)
    before = threading.active_count()
    with Loader(reader, 3, 2) as loader:
        for _ in range(5):
            stream = loader.batches(EvalPlan(len(reader), 4).micro_batches(0, 1), transforms)
            next(stream)
            stream.close()
        stream = loader.batches(EvalPlan(len(reader), 4).micro_batches(0, 1), transforms)
        whole = [batch.micro_batch.indices[0] for batch in stream]
        assert whole == list(range(0, len(reader), 4))
    assert threading.active_count() == before


def test_the_meter_counts_what_was_done(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    with Loader(reader, 2, 2) as loader:
        for _ in loader.batches(
            EvalPlan(len(reader), 4).micro_batches(0, 1), eval_transforms(reader, PLAIN, "cpu", CPU)
        ):
            pass
        times = loader.timer.snapshot()
    assert times.samples == len(reader) and times.bytes_read == reader.records["size"].sum()
    assert times.decode > 0 and times.decode_cpu > 0 and times.waited > 0


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.device.defaults.available_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decode_threads(0) == 4 and decode_threads(3) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert decode_threads(0) == decode_threads(0, torch.device("cpu")) == 16
    assert decode_threads(0, torch.device("cuda")) == GPU_THREADS and decode_threads(9, torch.device("cuda")) == 9
