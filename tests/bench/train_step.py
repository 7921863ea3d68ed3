"""Does the model ever wait? Updates of the real trainer, of timm's loader, and steps on a batch that is already there.

    python tests/bench/train_step.py --shards SHARDS [--sides 182,256,500] [--batch 256] [--steps 50] [--json FILE]

Ours is `Trainer` as `posters train` runs it, on shard sets of the training posters of SHARDS at each short side (small
ones are enlarged): loader, augmentation, guard, vote on stopping, moving average, log. A block is an epoch of it, but
for its first update and its validation. The bare steps are forward, loss, backward, optimiser and moving average alone,
on a resident batch and on batches that timm's loader brings to the device as timm's train.py makes it (the wheel has no
train.py), from the same posters as files. Blocks alternate; a ratio is the median over rounds of images/s against the
resident batch (goal on a GPU: at least 0.97 for ours). The device is named, because the answer is about it.
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
from pathlib import Path
from statistics import median
from typing import Any

import torch
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


def recipe(options: argparse.Namespace) -> Config:
    """The defaults, with all weights trained and a moving average."""
    return Config(
        data=DataConfig(image_size=options.size, workers=options.threads),
        model=ModelConfig(name=options.model, pretrained=False, head="linear", freeze=()),
        augment=AugmentConfig(),
        train=TrainConfig(
            epochs=options.rounds + 1, batch_size=options.batch, ema=0.999, checkpoint_steps=0, trackers={}
        ),
    )


def make_set(source: ShardReader, side: int, count: int, folder: Path) -> Path:
    """Shards of ``count`` posters of ``source`` with that short side, and FOLDER/files with the same as files."""
    (folder / "files").mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "genre"])
        for sample in range(count):
            image = decode(bytes(source.read(sample)), AS_IS)
            (folder / "files" / f"{sample:06d}.jpg").write_bytes(resized(image, side / min(image.size), 90))
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


def measure(options: argparse.Namespace, side: int, folder: Path) -> dict[str, object]:
    """The rounds on posters of one size."""
    source = ShardReader.of_split(options.shards, "train", Manifest.read(options.shards))
    count = min(len(source), round(options.batch * (options.steps + 1) / (1 - VALIDATED)))
    if count * (1 - VALIDATED) < 2 * options.batch:
        raise UserError(
            "option-value",
            f"--batch {options.batch} leaves fewer than two updates of the {len(source)} training samples of "
            f"{options.shards}",
        )
    manifest = Manifest.read(make_set(source, side, count, folder))
    config = recipe(options)
    accelerator = make_accelerator(options.precision)
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
        trainer.others = (block(lambda: held), block(lambda: next(peer)))
        trainer.run()
    rounds = trainer.rounds[1:]
    ours, resident, timm = (median(column) for column in zip(*rounds, strict=True))
    return {
        "posters": len(readers[0]),
        "updates": trainer.plan.steps_per_epoch - 1,
        "ours": ours,
        "resident": resident,
        "timm": timm,
        "ratio": median(mine / bare for mine, bare, _ in rounds),
        "timm_ratio": median(theirs / bare for _, bare, theirs in rounds),
        "verdict": trainer.verdict,
    }


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
    parser.add_argument("--threads", type=int, default=0, help="that decode; 0: as many as a training takes")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        **{name: getattr(options, name) for name in ("model", "precision", "batch", "size")},
        "threads": decode_threads(options.threads, device),
        "sides": {},
    }
    try:
        if min(options.batch, options.steps, options.rounds) < 1:
            raise UserError("option-value", "--batch, --steps and --rounds must be at least 1")
        if not all(side.isdecimal() and int(side) >= 32 for side in options.sides.split(",")):
            raise UserError("option-value", f"--sides must be numbers of pixels, at least 32, and not {options.sides}")
        for side in map(int, options.sides.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                figures["sides"][str(side)] = found = measure(options, side, Path(folder))
            print(f"short side {side}: " + ", ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
            ))  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
