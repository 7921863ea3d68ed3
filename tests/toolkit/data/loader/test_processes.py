"""Decoding processes: the batches of threads bit for bit, one line for what goes wrong, and nothing left behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from number_source import Numbers, decoders, pixels, start

from shards.dataset.index import read_index
from shards.dataset.store import open_store
from toolkit.config.schema import DataConfig, Geometry, OnError
from toolkit.data.loader.faults import KEEP_ERRORS, FaultPolicy
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.sample_fields import SampleFields
from toolkit.data.sampling.plan import EvalPlan, TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.sources.image_files import FileSource
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import RawTransform, eval_transforms, file_transforms, train_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.prediction.chunks import ChunkSource, folder_chunks, shard_chunks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoding processes need Linux")
CPU = torch.device("cpu")
PLAIN = Preprocessing(32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def reader(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Training samples, of which two are damaged and one has the size of its transposed image."""
    folder = shutil.copytree(shard_set, tmp_path_factory.mktemp("spoilt") / "set")
    table, _ = read_index(folder / "train-00000.tar")
    rows = table.to_pylist()
    with open(folder / "train-00000.tar", "r+b") as stream:
        for row in rows[2], rows[5]:
            stream.seek(row["image_offset"])
            stream.write(bytes(row["image_size"]))
    whole = ShardReader.of_split(folder, "train")
    records = whole.records.copy()
    records[9]["width"], records[9]["height"] = whole.records[9]["height"], whole.records[9]["width"]
    assert records[9]["width"] != records[9]["height"]
    return ShardReader(whole.store, whole.shards, whole.labels, records)


def facts(batch: Batch) -> tuple[Any, ...]:
    """All of a batch, to compare."""
    micro_batch = batch.micro_batch
    columns = [column.tolist() for column in (micro_batch.indices, micro_batch.valid, micro_batch.repeat)]
    return batch.images.numpy().tobytes(), tuple(batch.images.shape), columns, batch.errors, batch.fields


@pytest.mark.parametrize(("on_error", "number"), [("replace", 1), ("mask", 2)])
def test_batches_errors_fields_and_counts_are_those_of_threads(reader: ShardReader, on_error: OnError, number: int):
    options: dict[str, Any] = {"policy": FaultPolicy(on_error, 1.0, seed=3)}
    options["fields"] = SampleFields(reader, {"json": json.loads})
    batch, world, step, epoch = st.integers(1, 40), st.integers(1, 3), st.integers(0, 9), st.integers(0, 3)
    with Loader(reader, 2, 2, **options) as threads, Loader(reader, 2, 3, **options, processes=number) as processes:

        @settings(max_examples=25, deadline=None)
        @given(batch, world, step, epoch, st.sampled_from(["cpu", "device"]), st.booleans())
        def same(batch: int, world: int, step: int, epoch: int, geometry: Geometry, train: bool) -> None:
            plan = TrainPlan(GlobalOrder(len(reader), 1), batch)
            config = DataConfig(image_size=32, geometry=geometry)
            random, fixed = train_transforms(reader, config, 5, epoch, CPU), eval_transforms(*_plain(reader, geometry))
            found, counts, told = [], [], []
            for loader in threads, processes:
                loader.faults.forget()
                before = loader.timer.snapshot()
                micro_batches = plan.rest_of_epoch(epoch, world - 1, world, first_step=step % plan.steps_per_epoch)
                ways = random if train else fixed
                found.append([facts(one) for one in loader.batches(micro_batches, ways, epoch)])
                spent = loader.timer.snapshot() - before
                counts.append((spent.samples, spent.bytes_read))
                told.append(dict(loader.faults.found))
                assert spent.decode > 0 and spent.decode_cpu > 0
            assert found[0] == found[1] and counts[0] == counts[1] and told[0] == told[1]

        same()


def test_damage_stops_and_is_logged_as_with_threads(reader: ShardReader, caplog: pytest.LogCaptureFixture):
    lines = []
    for processes in (0, 1):
        caplog.clear()
        with Loader(reader, 2, 2, policy=FaultPolicy("mask", 1.0), processes=processes) as loader:
            for _ in range(2):
                list(loader.batches(EvalPlan(len(reader), 8).micro_batches(0, 1), eval_transforms(*_plain(reader))))
        lines.append(sorted(caplog.messages))
        with Loader(reader, 2, 2, processes=processes) as loader, fails("too-many-bad", "2 of 56", "offset", "verify"):
            list(loader.batches(EvalPlan(len(reader), 8).micro_batches(0, 1), eval_transforms(*_plain(reader))))
    assert lines[0] == lines[1] and len(lines[0]) == 2


def _plain(
    reader: ShardReader, geometry: Geometry = "device"
) -> tuple[ShardReader, Preprocessing, Geometry, torch.device]:
    return reader, PLAIN, geometry, CPU


def test_batches_that_are_kept_stay_as_they_are_and_memory_is_not_kept(reader: ShardReader):
    plan, ways = EvalPlan(len(reader), 4), eval_transforms(reader, PLAIN, "cpu", CPU)
    with Loader(reader, 2, 2, policy=KEEP_ERRORS, processes=1) as loader:
        kept = list(loader.batches(plan.micro_batches(0, 1), ways))
        for _ in range(3):  # other batches are decoded meanwhile
            again = [facts(batch) for batch in loader.batches(plan.micro_batches(0, 1), ways)]
        assert [facts(batch) for batch in kept] == again
        del kept
    del loader, again
    gc.collect()
    assert memories() == 0


def memories() -> int:
    """Shared memories that this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:decoded-batch")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_loader_leaves_nothing_behind_at_its_end_after_a_break_or_an_error_or_when_forgotten(caplog):
    def whole() -> None:
        loader, batches = start(Numbers())
        with loader:
            assert len(decoders()) == 1
            assert sum(len(batch.micro_batch.indices) for batch in batches) == 60

    def left() -> None:
        loader, batches = start(Numbers())
        with loader:
            next(batches)

    def bug() -> None:
        loader, batches = start(Numbers(bug=30))
        with loader, pytest.raises(RuntimeError, match="Unpicklable"):
            list(batches)

    def forgotten() -> None:
        _, batches = start(Numbers())
        next(batches)

    resource_tracker.ensure_running()  # else the first process starts it, and its descriptor stays open
    before = descriptors()
    for way in (whole, left, bug, forgotten):
        way()
        gc.collect()
        assert decoders() == [] and memories() == 0 and descriptors() == before, way.__name__
    assert "40 is round" in caplog.messages  # the log of a process is the log of this one


def test_a_process_that_is_killed_ends_the_pass_with_one_line_and_all_others():
    loader, batches = start(Numbers(death=30), processes=2)
    with loader:
        with fails("worker-lost", "exit status -9", "fewer processes"):
            list(batches)
        assert decoders() == []
        with fails("worker-lost"):  # no batch is lost silently
            list(loader.batches(EvalPlan(60, 12).micro_batches(0, 1), file_transforms(2, pixels)))
    loader, batches = start(Numbers())
    with loader:
        next(batches)
        os.kill(decoders()[0], signal.SIGKILL)
        with fails("worker-lost"):
            list(batches)


PROGRAM = """
from number_source import Numbers, decoders, start
loader, batches = start(Numbers(count=10**7))
with loader:
    for number, batch in enumerate(batches):
        if number == 3:
            print(*decoders(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_a_program_that_is_killed_or_interrupted(tmp_path: Path, number: signal.Signals):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "toolkit"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    program = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    found = [int(word) for word in program.stdout.readline().split()]
    assert len(found) == 1 and all(Path("/proc", str(pid)).exists() for pid in found)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in found)
    assert errors.count(b"Traceback") == (number == signal.SIGINT), errors.decode()


def _runs(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_files_too(posters: Path):
    paths = sorted((posters / "images").glob("p*"))[:12]
    transforms, plan = file_transforms(32, RawTransform(PLAIN)), EvalPlan(len(paths), 5)
    found = []
    for processes in (0, 1):
        with Loader(FileSource(paths), 2, 2, policy=KEEP_ERRORS, processes=processes) as loader:
            found.append([facts(batch) for batch in loader.batches(plan.micro_batches(0, 1), transforms)])
    assert found[0] == found[1]


def test_chunks_of_a_batch_prediction_too(shard_set: Path, posters: Path):
    store = open_store(shard_set)
    paths = sorted((posters / "images").glob("p*"))[:12]
    chunks = shard_chunks(store, store.manifest(), None) + folder_chunks(posters, paths)
    found = []
    for processes in (0, 1):
        source = ChunkSource(chunks, PLAIN, CPU)
        with Loader(source, 2, 2, policy=KEEP_ERRORS, processes=processes) as loader:
            micro_batches = source.micro_batches(range(len(chunks)), 16)
            found.append([facts(batch) for batch in loader.batches(micro_batches, source.transforms)])
    assert found[0] == found[1] and len(chunks) > 4


def test_what_cannot_be_used_in_processes_is_told(reader: ShardReader, monkeypatch: pytest.MonkeyPatch):
    with fails("option-conflict", "its source or its fields", "threads"):
        Loader(reader, 1, 1, fields=lambda sample: sample, processes=1)
    loader, batches = start(Numbers(), transform=lambda data: pixels(data))
    with loader, fails("option-conflict", "its transform", "threads"):
        list(batches)
    gone = type("Numbers", (Numbers,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Numbers", gone, raising=False)  # as in a script of a user
    loader, batches = start(gone())
    with loader, fails("option-conflict", "a module that can be imported", "threads"):
        list(batches)
    with fails("option-conflict", "threads"):
        ShardLoader(reader, batch_size=4, transform=lambda image, generator: image, processes=1)
    with fails("option-value", "processes"):
        ShardLoader(reader, batch_size=4, processes=-1)
    monkeypatch.delattr(os, "memfd_create")
    with fails("environment", "Linux", "threads"):
        Loader(reader, 1, 1, processes=1)
    assert decoders() == []


def test_a_shard_loader_gives_the_same_batches(shard_set: Path):
    found = []
    for processes in (0, 1):
        with ShardLoader(shard_set, split="train", batch_size=8, fields=["json"], processes=processes) as loader:
            found.append([(b.images.numpy().tobytes(), b.indices.tolist(), b.fields) for b in loader])
    assert found[0] == found[1]
