"""Does the model ever wait? Training steps fed by the loader, by timm's, and the same steps on a resident batch.

    python tests/bench/train_step.py --shards SHARDS [--model resnet50] [--batch 256] [--steps 50] [--json FILE]

Blocks of steps alternate between the three; a ratio is the median over rounds of images/s fed by images/s resident
(goal on a GPU: at least 0.97). Everything that a real step does is in all: forward, loss, backward, update, autocast
and channels_last. The device is named, because the answer is about it. timm's wheel has no train.py: its loader is made
here as train.py makes it, on the same posters as files, with a worker per core, prefetching to the device.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader
from torch import nn

from shards.errors import UserError
from shards.files import write_json
from shards.manifest import Manifest
from toolkit.config import Config
from toolkit.data.cuts import train_cutter
from toolkit.data.loader import Batch, Loader, decode_threads, own_cores, targets_of
from toolkit.data.meter import Times, verdict
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import DTYPES
from toolkit.feed import train_plan
from toolkit.losses import build_loss
from toolkit.models import HeadSpec, build_model

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def endless(loader: Loader, reader: ShardReader, config: Config, device: torch.device) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    plan = train_plan(config, reader)
    for epoch in itertools.count():
        cutter = train_cutter(reader, config.data, config.train.seed, epoch, device)
        with contextlib.closing(loader.batches(plan.shares(epoch, 0, 1), cutter, epoch)) as batches:
            yield from (b for b in batches if len(b.images) == config.train.batch_size)


def timms(
    folder: Path, reader: ShardReader, config: Config, device: torch.device, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """timm's batches, on the device and normalised, of one epoch after the other; writes the posters to ``folder``."""
    for sample in range(len(reader)):
        (folder / f"{sample:08d}.jpg").write_bytes(reader.read(sample))
    data = config.data
    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, data.image_size, data.image_size),
        batch_size=config.train.batch_size,
        is_training=True,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        hflip=data.flip,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=IMAGENET[0],
        std=IMAGENET[1],
        num_workers=own_cores(),
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        device=device,
        img_dtype=dtype,
    )
    while True:
        for images, _ in loader:
            yield images.contiguous(memory_format=torch.channels_last)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run the rounds; returns every figure."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config()
    config.data = replace(config.data, image_size=options.size)
    config.train = replace(config.train, batch_size=options.batch)
    reader = ShardReader.of_split(options.shards, "train", Manifest.read(options.shards))
    if len(reader) < options.batch:
        raise UserError(
            f"--batch {options.batch} is more than the {len(reader)} training samples of {options.shards}"
        )
    if min(options.batch, options.steps, options.rounds) < 1:
        raise UserError("--batch, --steps and --rounds must be at least 1")
    head = HeadSpec("linear", (), 0.0)
    model: nn.Module = build_model(options.model, len(reader.labels), head, options.size, pretrained=False)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    prepare = Preprocessing(options.size, 1.0, *IMAGENET)
    dtype = DTYPES[options.precision]
    criterion = build_loss(config.loss, reader.positives, len(reader)).to(device)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits = model(images)
        criterion(logits, targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def fed() -> None:
        batch = next(batches)
        targets = targets_of(batch.share, reader).to(device, non_blocking=True)
        step(prepare.normalize(batch.images, dtype), targets)

    def resident() -> None:
        step(held, held_targets)

    def fed_by_timm() -> None:
        step(next(peer), held_targets)

    def rate(run: Callable[[], None]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(options.steps):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return options.steps * options.batch / (time.perf_counter() - started)

    threads = decode_threads(options.threads, device)
    with (
        Loader(reader, threads, config.data.prefetch, device=device) as loader,
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(timms(Path(folder), reader, config, device, dtype)) as peer,  # type: ignore[type-var]
    ):
        batches = endless(loader, reader, config, device)
        first = next(batches)
        held = prepare.normalize(first.images, dtype).clone(memory_format=torch.channels_last)
        held_targets = targets_of(first.share, reader).to(device)
        runs = (fed, resident, fed_by_timm)
        for run in runs:  # warm-up: kernels are chosen, memory is found, workers started
            rate(run)
        rounds, seconds, spent = [], 0.0, Times()
        for _ in range(options.rounds):
            before, started = loader.meter.snapshot(), time.perf_counter()
            ours = rate(fed)
            seconds += time.perf_counter() - started
            spent = spent + (loader.meter.snapshot() - before)
            rounds.append((ours, rate(resident), rate(fed_by_timm)))
        limit = verdict(spent, seconds, threads, own_cores(), "CPU" if device.type == "cpu" else "GPU")
        batches.close()  # type: ignore[attr-defined]
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "model": options.model,
        "precision": options.precision,
        "batch": options.batch,
        "threads": threads,
        "fed": statistics.median(ours for ours, _, _ in rounds),
        "resident": statistics.median(resident for _, resident, _ in rounds),
        "timm": statistics.median(timm for _, _, timm in rounds),
        "ratio": statistics.median(ours / resident for ours, resident, _ in rounds),
        "timm_ratio": statistics.median(timm / resident for _, resident, timm in rounds),
        "verdict": limit,
    }


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", default="resnet50", help="any timm architecture")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=50, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="that decode; 0: as many as a training takes")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        figures = measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for key, value in figures.items():
        print(f"{key:10} {value:.3f}" if isinstance(value, float) else f"{key:10} {value}")
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
