"""What does one update ask of the device, and of Python? Operations and microseconds of each of its parts.

    python tests/bench/step_ops.py --shards SHARDS [--batch 64] [--json FILE] [words of posters train]

Operations are counted on torch's "meta" device, which computes nothing, with the lists of tensors (foreach) that torch
uses on a GPU. Views and allocations are not counted, because they start nothing on a device. An operation on a list
counts once. The time is of this CPU, of a part without the parts inside it, with a thin ResNet50: as many tensors as
the real one, and little to compute. Neither number says how fast a GPU is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import write_json
from toolkit.cli.commands import read
from toolkit.config.schema import Config
from toolkit.data.augment import pipeline
from toolkit.data.loader.loader import Batch
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import DeviceTransform, train_transforms
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.votes import Vote
from toolkit.training import train_step as train_step_module
from toolkit.training.nonfinite import Guard
from toolkit.training.optim import build_optimizer
from toolkit.training.setup import TrainingSetup, build_setup
from toolkit.training.train_step import TrainStep

META = torch.device("meta")
COMMON = ["--model.pretrained=false", "--model.freeze=[]", "--data.geometry=device"]
REFERENCE = ["--train.ema=0.99"]
#: All augmentations at once.
EVERYTHING = ["--augment.randaugment=2", "--augment.erase=1", "--augment.brightness=0.3", "--augment.contrast=0.3",
              "--augment.saturation=0.3", "--augment.mixup=0.5", "--augment.cutmix=0.5", "--train.ema=0.99",
              "--optim.clip_norm=1", "--optim.name=adamw", "--optim.weight_decay=0.1"]  # fmt: skip
#: The parts of TrainStep that other modules do.
CALLED = {
    "seed_step": "seed", "set_lr": "learning rate", "_kept_buffers": "kept buffers",
    "clip_grad_norm_": "clip", "clip_grads_with_norm_": "clip", "targets_of": "targets, copies",
}  # fmt: skip
ALLOCATE = ("empty", "new_empty", "detach", "lift_fresh")


@register_model
def thin_resnet50(pretrained: bool = False, **options: Any) -> ResNet:
    """A ResNet50 with a sixteenth of the channels."""
    shape: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": (4, 8, 16, 32)}
    thin: ResNet = build_model_with_cfg(ResNet, "resnet50", pretrained, **shape, **options)
    return thin


class Parts(TorchDispatchMode):
    """Operations and seconds of each part. The innermost of the parts that are running gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.since = ["rest"], time.perf_counter()
        self.operations: Counter[str] = Counter()
        self.names: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = any(isinstance(leaf, torch.Tensor) and leaf.device == META for leaf in tree_leaves((args, result)))
        name = func.name().split("::")[1]
        if there and not func.is_view and not name.startswith(ALLOCATE):
            self.operations[self.running[-1]] += 1
            self.names[self.running[-1], name] += 1
        return result

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def named(self, name: str, function: Any) -> Any:
        """``function``, as a part."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return run


class There:
    """An accelerator on another device."""

    def __init__(self, accelerator: Any, device: torch.device) -> None:
        self.accelerator, self.device = accelerator, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let torch choose lists of tensors on every device, and leave autocast alone on one that has none."""
    real, names = torch.autocast, ["cuda", "cpu", "meta"]

    def autocast(device: str, *arguments: Any, **options: Any) -> Any:
        return contextlib.nullcontext() if device == "meta" else real(device, *arguments, **options)

    with contextlib.ExitStack() as stack:
        for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
            stack.enter_context(mock.patch(f"{module}._get_foreach_kernels_supported_devices", lambda: names))
        stack.enter_context(mock.patch("torch.autocast", autocast))
        yield


def make_step(shards: Path, out: Path, words: Sequence[str], device: torch.device) -> tuple[TrainStep, ShardReader]:
    """The updates of a run on ``device``, as a trainer makes them."""
    config: Config = read(["train", f"--shards={shards}", f"--out={out}", *words])[1].config
    manifest = Manifest.read(shards)
    readers = [ShardReader.of_split(shards, split, manifest) for split in ("train", "val")]
    setup = build_setup(make_accelerator("no"), config, manifest, readers, out, None)
    setup.freezing.training_mode(setup.model, 0)
    if device == META:
        setup.accelerator = There(setup.accelerator, device)
        setup.model, setup.criterion = setup.model.to(device), setup.criterion.to(device)
        setup.optimizer = AcceleratedOptimizer(build_optimizer(setup.model, config.optim))
        if setup.ema is not None:
            setup.ema.module.to(device)
    guard = Guard(setup.accelerator, config.train.on_nonfinite, setup.train.sample_id)
    return TrainStep(setup, guard, Vote(setup.accelerator)), readers[0]


def timed(stack: contextlib.ExitStack, parts: Parts, setup: TrainingSetup) -> None:
    """Let the parts of an update name themselves."""

    def wrap(owner: Any, name: str, part: str) -> None:
        if hasattr(owner, name):  # versions differ in a few names
            stack.enter_context(mock.patch.object(owner, name, parts.named(part, getattr(owner, name))))

    for name, part in CALLED.items():
        wrap(train_step_module, name, part)
    wrap(TrainStep, "losses", "targets, copies")
    wrap(TrainStep, "_keep_buffers", "kept buffers")
    wrap(TrainStep, "_apply_gradient", "optimiser")
    wrap(DeviceTransform, "images", "geometry")
    wrap(setup.accelerator, "backward", "backward")
    wrap(setup.model, "forward", "network")
    wrap(setup.criterion, "forward", "loss")
    wrap(Guard, "begin", "guard")
    wrap(Guard, "note", "guard")
    wrap(Guard, "allow", "guard")
    wrap(setup.optimizer, "step", "optimiser")
    wrap(setup.optimizer, "zero_grad", "zero_grad")
    if setup.ema is not None:
        wrap(setup.ema, "update", "moving average")
    wrap(type(setup.inputs), "normal", "normalise")
    wrap(pipeline.Augmenter, "__call__", "augment: planes")
    wrap(pipeline, "draw_pairs", "augment: mix")
    wrap(pipeline, "mix", "augment: mix")
    augment = setup.inputs.augment  # type: ignore[union-attr]
    augment.steps = [parts.named(f"augment: {step.__name__}", step) for step in augment.steps]


def measure(shards: Path, words: Sequence[str], batch: int, updates: int, device: torch.device) -> Parts:
    """The operations of ``updates`` updates after a first one, or medians of their seconds on a CPU."""
    parts, every = Parts(), []
    with tempfile.TemporaryDirectory() as out, as_on_a_gpu(), contextlib.ExitStack() as stack:
        step, reader = make_step(shards, Path(out), [*words, f"--train.batch_size={batch}"], device)
        config, plan = step.setup.config, step.plan
        timed(stack, parts, step.setup)

        def batches(micro_batches: Sequence[MicroBatch]) -> Iterator[Batch]:
            for micro_batch in micro_batches:
                with parts.part("crops, tables"):
                    cut: Any = train_transforms(reader, config.data, 0, 0, device)(micro_batch)
                packed = torch.empty(cut.size, dtype=torch.uint8, device=device)
                with parts.part("geometry"):
                    images = cut.geometry(packed, torch.float16 if device == META else torch.float32)
                yield Batch(images, micro_batch, {})

        for number in range(updates + 1):
            with parts.part("plan"):
                epoch, at = divmod(number, plan.steps_per_epoch)
                micro_batches = plan.micro_batches(epoch, at, 0, 1, step.accumulation)
            source = batches(micro_batches)
            parts.seconds.clear()
            if number == 1:  # the first update makes constants and the state of the optimiser
                parts.operations.clear()
                parts.names.clear()
            with parts if device == META else contextlib.nullcontext():
                with parts.part("rest of the update"):
                    step(source, epoch, at, number + 1, 0.01)
            every.append(dict(parts.seconds))
    parts.seconds.update({part: median(seen[part] for seen in every[1:]) for part in every[-1]})
    return parts


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20, help="whose time is measured")
    parser.add_argument("--names", action="store_true", help="print the operations of each part")
    parser.add_argument("--json", type=Path)
    options, words = parser.parse_known_args()
    if options.batch < 1 or options.updates < 1:
        parser.error("--batch and --updates take whole numbers from 1")
    torch.set_num_threads(1)
    try:
        compare(options, words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Measure and print both configurations. Raises UserError."""
    figures: dict[str, Any] = {"torch": torch.__version__, "batch": options.batch}
    for title, more in {"reference": REFERENCE, "everything": EVERYTHING}.items():
        real = [*COMMON, *more, *words]
        thin = [*real, "--model.name=thin_resnet50", "--data.image_size=64"]
        counted = measure(options.shards, real, options.batch, 1, META)
        seconds = measure(options.shards, thin, options.batch, options.updates, torch.device("cpu")).seconds
        parts = sorted({*counted.operations, *seconds})
        figures[title] = {part: [counted.operations[part], round(seconds[part] * 1e6)] for part in parts}
        ours = [part for part in parts if part not in ("network", "backward")]
        total = sum(counted.operations[part] for part in ours), round(sum(seconds[part] for part in ours) * 1e6)
        figures[title]["all but network and backward"] = list(total)
        print(f"{title:34}  operations    microseconds")
        for part, (number, micro) in figures[title].items():
            print(f"  {part:34}{number:10}{micro:16}")
        if options.names:
            for (part, name), count in sorted(counted.names.items()):
                print(f"    {part}: {count} x {name}") if part not in ("network", "backward") else None
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    sys.exit(main())
