"""Does the model ever wait? Updates of the real trainer, of timm's loader, and steps on a batch that is already there.

    python tests/bench/train_step.py --shards SHARDS [--sides 182,256,500] [--threads 0,2,16] [--json FILE]

Ours is `Trainer` as `posters train` runs it, on shard sets of the training posters of SHARDS at each short side
(small ones are enlarged): loader, augmentation, guard, vote on stopping, moving average, log. A block is an epoch of
it, but for its first update and its validation. The bare steps are forward, loss, backward, optimiser and moving
average alone, on a resident batch and on batches that timm's loader brings to the device as timm's train.py makes it
(the wheel has no train.py), from the same posters as files. Blocks alternate; a ratio is the median over rounds of
images/s against the resident batch (goal on a GPU: at least 0.97 for ours). The device is named, because the answer
is about it. With several numbers of --threads, timm's loader is measured beside the first one only.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from posterdata import AS_IS, resized
from timm.data import create_dataset, create_loader

from shards.build.run import BuildOptions, build_shards
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.inputs.images import decode
from shards.storage.files import write_json
from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from toolkit.data.loader.loader import targets_of
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.device.defaults import DTYPES, autocast_dtype, decode_threads, own_cores
from toolkit.distributed.collectives import make_accelerator
from toolkit.training.batches import Stopwatch
from toolkit.training.setup import TrainingSetup, build_setup
from toolkit.training.trainer import Trainer

#: Of the posters, for a split that the trainer wants to have; it is never looked at.
VALIDATED = 0.05
#: A block, as images/s of so many bare steps.
Block = Callable[[int], float]


class Measured(Trainer):
    """The trainer; where an epoch would be validated, the others take their turn."""

    others: tuple[Block, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rounds: list[tuple[float, ...]] = []
        """Images/s of ours and the others, of each epoch; the first one chooses kernels and finds memory."""
        self.verdict = ""

    def _update(self, batches: Any) -> Any:
        result = super()._update(batches)
        if self.state.step == 1:
            settle(self.accelerator.device)
            self.watch = Stopwatch(self.feed)
        return result

    def _validate(self, row: dict[str, Any]) -> None:
        settle(self.accelerator.device)
        ours = (self.plan.num_samples - self.plan.count(0)) / self.watch.seconds
        self.verdict = self.watch.bottleneck().line
        self.rounds.append((ours, *(block(self.plan.steps_per_epoch - 1) for block in self.others)))
        self.state.epoch, self.state.step, self.state.loss_sum = self.state.epoch + 1, 0, 0.0


def settle(device: torch.device) -> None:
    """Wait for all that the device was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recipe(options: argparse.Namespace, threads: int) -> Config:
    """The defaults, with all weights trained and a moving average."""
    return Config(
        data=DataConfig(image_size=options.size, workers=threads),
        model=ModelConfig(name=options.model, pretrained=False, head="linear", freeze=()),
        augment=AugmentConfig(),
        train=TrainConfig(
            epochs=options.rounds + 1,
            batch_size=options.batch,
            ema=0.999,
            checkpoint_steps=0,
            trackers={},
            compile=options.compile,
        ),
    )


def make_set(source: ShardReader, side: int, count: int, folder: Path) -> Path:
    """Shards of ``count`` posters of ``source`` with that short side, and FOLDER/files with the same as files."""
    (folder / "files").mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "genre"])
        data = [bytes(source.read(sample)) for sample in range(count)]
        with ThreadPoolExecutor(own_cores()) as pool:  # Pillow releases the lock
            images = pool.map(lambda one: shrunk(one, side), data)
            for sample, image in enumerate(images):
                (folder / "files" / f"{sample:06d}.jpg").write_bytes(image)
        for sample in range(count):
            genres = source.targets_of(torch.tensor([sample]).numpy())[0].nonzero()[0]
            table.writerow([f"{sample:06d}", str([source.labels.genres[genre] for genre in genres])])
    build_shards(
        BuildOptions(
            metadata=folder / "metadata.csv",
            images=folder / "files",
            out=folder / "shards",
            fractions=(1 - VALIDATED, VALIDATED, 0.0),
            near_duplicates=0,
            image=AS_IS,
            workers=1,  # others would each load torch first
        )
    )
    return folder / "shards"


def shrunk(data: bytes, side: int) -> bytes:
    """A JPEG with that short side."""
    image = decode(data, AS_IS)
    return resized(image, side / min(image.size), 90)


def timms(folder: Path, setup: TrainingSetup, device: torch.device, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """timm's batches of the files in ``folder``, on the device and normalised, of one epoch after the other."""
    data, prepare = setup.config.data, setup.preprocessing
    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, data.image_size, data.image_size),
        batch_size=setup.config.train.batch_size,
        is_training=True,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        hflip=data.flip,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=prepare.mean,
        std=prepare.std,
        num_workers=own_cores(),
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        device=device,
        img_dtype=dtype,
    )
    while True:
        for images, _ in loader:
            yield images.contiguous(memory_format=torch.channels_last)


def measure_side(options: argparse.Namespace, side: int, folder: Path) -> dict[str, Any]:
    """The figures of the first number of threads on posters of one size, and those of all numbers by_threads."""
    source = ShardReader.of_split(options.shards, "train", Manifest.read(options.shards))
    count = min(len(source), round(options.batch * (options.steps + 1) / (1 - VALIDATED)))
    if count * (1 - VALIDATED) < 2 * options.batch:
        raise UserError(
            "option-value",
            f"--batch {options.batch} leaves fewer than two updates of the {len(source)} training samples of "
            f"{options.shards}",
        )
    make_set(source, side, count, folder)
    accelerator = make_accelerator(options.precision)
    found: dict[str, Any] = {}
    for threads in dict.fromkeys(decode_threads(threads, accelerator.device) for threads in options.threads):
        found[str(threads)] = measure(options, threads, folder, accelerator, with_timm=not found)
    return {**next(iter(found.values())), "by_threads": found}


def measure(
    options: argparse.Namespace, threads: int, folder: Path, accelerator: Accelerator, *, with_timm: bool
) -> dict[str, Any]:
    """The rounds on the posters of ``folder``."""
    manifest = Manifest.read(folder / "shards")
    config = recipe(options, threads)
    device, dtype = accelerator.device, autocast_dtype(accelerator)
    readers = [ShardReader.of_split(folder / "shards", split, manifest) for split in ("train", "val")]
    setup = build_setup(accelerator, config, manifest, readers, folder, None)
    trainer = Measured(setup)

    def step(images: torch.Tensor) -> None:
        with accelerator.autocast():
            logits = setup.model(images)
        accelerator.backward(setup.criterion(logits, held_targets[: len(images)]).mean())
        setup.optimizer.step()
        setup.optimizer.zero_grad()
        if setup.ema is not None:
            setup.ema.update(trainer.train_step.plain_model, step=1)

    def block(images: Callable[[], torch.Tensor]) -> Block:
        def run(steps: int) -> float:
            done, started = 0, time.perf_counter()
            for _ in range(steps):
                batch = images()
                step(batch)
                done += len(batch)
            settle(device)
            return done / (time.perf_counter() - started)

        return run

    with contextlib.closing(trainer.feed.batches(0, 0)) as batches:
        first = next(batches)
        held = setup.preprocessing.normalize(first.images, dtype).clone(memory_format=torch.channels_last)
        # Twice, for timm's batches may have a row more than an update of ours.
        held_targets = targets_of(first.micro_batch, setup.train).to(device).repeat(2, 1)
    with contextlib.closing(timms(folder / "files", setup, device, dtype)) as peer:  # type: ignore[type-var]
        trainer.others = (block(lambda: held), block(lambda: next(peer)))[: 1 + with_timm]
        trainer.run()
    rounds = trainer.rounds[1:]
    columns = dict(zip(("ours", "resident", "timm"), zip(*rounds, strict=True), strict=False))
    timm_ratio = {"timm_ratio": median(theirs / bare for _, bare, theirs in rounds)} if with_timm else {}
    return {
        "posters": len(readers[0]),
        "updates": trainer.plan.steps_per_epoch - 1,
        **{name: median(column) for name, column in columns.items()},
        "ratio": median(mine / bare for mine, bare, *_ in rounds),
        **timm_ratio,
        "verdict": trainer.verdict,
    }


def numbers_of(option: str, text: str, least: int, what: str) -> list[int]:
    """The numbers of a list with commas. Raises UserError."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise UserError("option-value", f"{option} must be {what}, at least {least}, and not {text}")
    return [int(part) for part in parts]


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="whose training posters are used")
    parser.add_argument("--sides", default="182,256,500", help="short sides of posters, in pixels")
    parser.add_argument("--model", default="resnet50", help="any timm architecture")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=50, help="updates of a block, if there are so many posters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="0", help="numbers of threads that decode; 0: as many as a training takes")
    parser.add_argument("--compile", action="store_true", help="train.compile; the bare steps use the same model")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        **{name: getattr(options, name) for name in ("model", "precision", "batch", "size")},
        "compile": options.compile,
        "sides": {},
    }
    try:
        if min(options.batch, options.steps, options.rounds) < 1:
            raise UserError("option-value", "--batch, --steps and --rounds must be at least 1")
        sides = numbers_of("--sides", options.sides, 32, "numbers of pixels")
        options.threads = numbers_of("--threads", options.threads, 0, "numbers of threads")
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                figures["sides"][str(side)] = found = measure_side(options, side, Path(folder))
            for threads, row in found["by_threads"].items():
                print(f"short side {side}, {threads} threads: " + ", ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                ))  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
