"""What a large prediction chooses by measurement: decoding threads and torch.compile. Neither changes its rows."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toolkit_helpers import make_model_folder, some_decisions
from torch import nn

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards
from toolkit.cli.main import main
from toolkit.config.options import ForwardOptions
from toolkit.data.loader.faults import KEEP_ERRORS
from toolkit.device.defaults import SPARE, feeding_threads
from toolkit.inference.forward import Forward
from toolkit.inference.scoring import inference_loader, score
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction import batch, measured
from toolkit.prediction.chunks import Chunk, ChunkSource, chunk_of, shard_chunks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    return make_model_folder(folder, labels, HeadSpec("linear", (), 0.0), decisions=some_decisions(len(labels)))


@pytest.fixture
def chunks(shard_set: Path) -> list[Chunk]:
    return shard_chunks(LocalShards(shard_set), Manifest.read(shard_set), None)


@pytest.mark.parametrize(
    ("decode", "forward", "cores", "threads"),
    [
        (0.0005, 0.0001, 16, 7),  # the need of an H200: five threads, and a reserve
        (0.0005, 0.001, 16, 1),  # a slow device
        (0.005, 0.0001, 16, 16),  # large posters: all cores
        (0.005, 0.0001, 1, 1),
        (0.0008 / SPARE, 0.0001, 16, 8),  # no thread more than the reserve requires
    ],
)
def test_threads_follow_both_speeds(decode: float, forward: float, cores: int, threads: int) -> None:
    assert feeding_threads(decode, forward, cores) == threads


def forward_of(model: Path, **options: Any) -> Forward:
    folder = load_model_folder(model)
    return Forward(folder.model, folder.preprocessing, options=ForwardOptions(**options))


def choices(model: Path, chunks: list[Chunk], device: torch.device, workers: int = 0) -> tuple[Any, ...]:
    """What a process with these chunks chooses, and the chunks that it then predicts."""
    folder, forward = load_model_folder(model), forward_of(model, compile=False if device.type == "cuda" else None)
    job = batch.Job(chunks, folder, forward, Path("out"), batch_size=4, workers=workers)
    source = ChunkSource(chunks, folder.preprocessing, CPU)
    accelerator: Any = SimpleNamespace(device=device, num_processes=1)
    todo = range(len(chunks))
    chosen, threads, numbers = batch._choices(job, source, iter(todo), todo, accelerator)
    return chosen is forward, threads, list(numbers)


def test_a_small_prediction_measures_nothing(model: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "forward_seconds", lambda *_: pytest.fail("measured"))
    assert choices(model, chunks, torch.device("cuda")) == (True, 0, [*range(len(chunks))])


def test_a_large_prediction_on_a_gpu_measures_its_threads(
    model: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measured, "LARGE", 1)
    monkeypatch.setattr(measured, "own_cores", lambda: 24)
    monkeypatch.setattr(measured, "some_pixels", lambda *_: torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
    monkeypatch.setattr(measured, "forward_seconds", lambda *_: 1e-9)  # no number of threads is enough
    with caplog.at_level(logging.INFO):
        assert choices(model, chunks, torch.device("cuda")) == (True, 24, [*range(len(chunks))])
    assert "decoding threads: 24 of at most 24; one decodes" in caplog.text
    monkeypatch.setattr(measured, "forward_seconds", lambda *_: 1e9)
    assert choices(model, chunks, torch.device("cuda"))[1] == 1
    assert choices(model, chunks, torch.device("cuda"), workers=3)[1] == 3  # --threads 3
    monkeypatch.setattr(measured, "forward_seconds", lambda *_: 1e-9)
    assert choices(model, chunks, CPU)[1] == 0  # a CPU decodes with all cores between the passes


def test_damaged_images_are_measured_too(model: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ChunkSource(chunks, load_model_folder(model).preprocessing, CPU).opened(0)
    read = opened.source.read
    monkeypatch.setattr(opened.source, "read", lambda index: memoryview(bytearray(9)) if index == 0 else read(index))
    assert 0 < measured.decode_seconds(opened, chunks[0].count) < 10


@pytest.mark.parametrize(("good", "seconds", "threads"), [(2, 4.0, 1), (0, float("inf"), 0)])
def test_damaged_images_do_not_make_decoding_seem_fast(
    good: int, seconds: float, threads: int, model: Path, chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ChunkSource(chunks, load_model_folder(model).preprocessing, CPU).opened(0)
    read = opened.source.read
    damaged = memoryview(bytearray(9))
    monkeypatch.setattr(opened.source, "read", lambda index: read(index) if index < good else damaged)
    monkeypatch.setattr(measured, "time", SimpleNamespace(perf_counter=iter([0.0, 8.0] * 2).__next__))
    assert measured.decode_seconds(opened, chunks[0].count) == seconds
    assert measured.choose_threads(opened, chunks[0].count, 1e9) == threads


def test_outputs_of_several_batches_are_those_of_each(model: Path, chunks: list[Chunk]) -> None:
    def found(together: int) -> list[tuple[int, list[int], np.ndarray]]:
        source = ChunkSource(chunks, load_model_folder(model).preprocessing, CPU)
        with inference_loader(source, CPU, 1, KEEP_ERRORS) as loader:
            batches = source.micro_batches(range(len(chunks)), 3)
            forward = forward_of(model)
            for_each = score(loader, batches, source.transforms, forward, together=together, part_of=chunk_of)
            groups = list(for_each)
        assert together == 1 or {len(group.indices) for group in groups} & {6}
        parts = source.whole(iter(groups))
        return [(number, scored.indices.tolist(), scored.logits) for number, _, scored in parts]

    for one, other in zip(found(1), found(2), strict=True):
        assert one[:2] == other[:2] and np.array_equal(one[2], other[2])


class StandIn(nn.Module):
    """What stands in for a compiled network: it gives the network's outputs plus ``wrong``."""

    def __init__(self, network: nn.Module, wrong: float) -> None:
        super().__init__()
        self.network, self.wrong = network, wrong

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, embeddings = self.network(images)
        return logits + self.wrong, embeddings


@pytest.mark.parametrize(
    ("wrong", "speeds", "padding", "used", "line"),
    [
        (1e-6, 0.5, 1.0, True, "torch.compile is used: 2 images/s with it, 1 without"),
        (1e-6, 0.97, 1.0, False, "torch.compile is not used: 1 images/s with it, 1 without"),
        (1e-6, 0.5, 2.5, False, "torch.compile is not used: 1 images/s with it, 1 without"),
        (0.1, 0.5, 1.0, False, "torch.compile is not used, because its outputs differ by"),
        (float("nan"), 0.5, 1.0, False, "torch.compile is not used, because its outputs differ by nan"),
    ],
)
def test_compiled_if_it_is_faster_and_right(
    model: Path, wrong: float, speeds: float, padding: float, used: bool, line: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "compile", lambda network: StandIn(network, wrong))
    monkeypatch.setattr(measured, "forward_seconds", lambda *_: speeds)
    forward = forward_of(model)
    pixels = measured.some_pixels(4, forward.preprocessing.image_size, CPU)
    with caplog.at_level(logging.INFO):
        chosen = measured.compiled_if_faster(forward, pixels, 1.0, padding)
    assert (chosen is not forward) == used and chosen.full_batch == (4 if used else 0)
    assert line in caplog.text


def test_a_compiler_that_fails_is_no_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(network: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", fails)
    forward = forward_of(model)
    pixels = measured.some_pixels(2, forward.preprocessing.image_size, CPU)
    assert measured.compiled_if_faster(forward, pixels, 1.0, 1.0) is forward
    (record,) = caplog.records
    assert record.getMessage() == "torch.compile is not used, because it failed: no C++ compiler found"


def test_what_pays_for_a_compilation() -> None:
    assert not measured.worth_compiling(2_000_000, 1e-4)  # three minutes of an H200
    assert measured.worth_compiling(100_000, 0.011)  # twenty minutes of two cores


def test_a_large_prediction_may_be_compiled(
    model: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command: the same rows, and other numbers only by what the stand-in adds."""
    plain = ["predict", f"--shards={shard_set}", f"--model={model}", "--threads=1", "--batch-size=5"]
    assert main([*plain, f"--out={tmp_path / 'plain'}"]) == 0
    monkeypatch.setattr(torch, "compile", lambda network: StandIn(network, 1e-4))
    monkeypatch.setattr(measured, "LARGE", 1)
    monkeypatch.setattr(measured, "TIMES", 0)
    monkeypatch.setattr(measured, "SAVED", -1e9)
    frames = []
    for name, words in (("auto", []), ("off", ["--no-compile"])):
        assert main([*plain, *words, f"--out={tmp_path / name}"]) == 0
        both = [pd.concat(map(pd.read_parquet, sorted((tmp_path / n).glob("*.parquet")))) for n in ("plain", name)]
        assert both[0]["id"].tolist() == both[1]["id"].tolist()
        numbers = [frame.select_dtypes("float32").to_numpy() for frame in both]
        np.testing.assert_allclose(numbers[0], numbers[1], atol=1e-3)
        frames.append(np.array_equal(*numbers))
    assert frames == [False, True]
