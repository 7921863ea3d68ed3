"""Batch prediction, ours against the forward pass alone and against peers: ``python tests/bench/predict.py``

    [--images DIR] [--model RUN/model] [--precision bf16] [--samples 1000] [--repeat 30] [--rounds 5] [--json FILE]

The same posters and model for all: ``posters predict`` on shards and on files, timm's inference.py, transformers'
image-classification pipeline. Two rows are limits: the forward pass alone on a resident batch, and decoding alone on
all cores. Each stack runs in a process of its own (stacks/predict_*.py). The stacks take turns, and ratios are
medians of the ratios within a round. Reading, decoding, calibration and writing the rows count; loading the model
does not. --repeat gives each poster many times under other keys, for a GPU that is done with 1,000 posters in a
moment. --profile adds one more pass, with the share of its time that each part of our code took (stacks/sampling.py).
``python tests/bench/peers.py transformers`` installs the last peer.
"""

from __future__ import annotations

import argparse
import platform
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from loader import BENCH, SEED, WORK, Entry, machine, say, unavailable, without_paths
from measure import STACKS, Contest, StackFailed, StackProcess
from peers import PEERS, python_of
from posterdata import PosterSet, prepare_sets
from report import Rounds, rate

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.executors.local import available_cores
from shards.storage.files import write_json
from shards.storage.lock import folder_lock
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.device.defaults import rows_for
from toolkit.model_folder.folder import load_model_folder, save_model_folder
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec

ENTRIES: dict[str, Entry] = {
    "forward": Entry("predict_forward.py"),
    "decode": Entry("decode_only.py"),
    "ours_shards": Entry("predict_ours.py", "shards"),
    "ours_files": Entry("predict_ours.py", "files"),
    "timm": Entry("predict_timm.py"),
    "transformers": Entry("predict_transformers.py", peer="transformers"),
}
OURS = ("ours_shards", "ours_files")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def default_model(work: Path, name: str, size: int) -> Path:
    """A model folder without training: weights do not matter for speed."""
    folder = work / f"model-{name}-{size}"
    if not folder.exists():
        labels = LabelSet(tuple(f"Genre {number:02d}" for number in range(19)))
        head = HeadSpec("linear", (), 0.0)
        torch.manual_seed(SEED)
        save_model_folder(
            folder,
            build_model(name, len(labels), head, size),
            head,
            labels,
            Decisions.plain(np.full(len(labels), 0.5), "none: untrained"),
            Preprocessing(size, 1.0, *IMAGENET, fit="stretch"),
            {"epoch": 0, "shard_set": "none"},
            {},
        )
    return folder


def measure(posters: PosterSet, options: argparse.Namespace, model: Path, size: int, work: Path) -> dict[str, Any]:
    """All stacks, taking turns."""
    task = {
        **WORK,
        "batch": options.batch,
        "size": size,
        "cores": available_cores(),
        "set": posters.name,
        "samples": posters.samples,
        "files": str(posters.files),
        "shards": str(posters.shards),
        "tars": [str(tar) for tar in posters.tars],
        "model": str(model.resolve()),
        "precision": options.precision,
        "compile": options.compile,
    }
    with Contest(options.stacks, "predict", lambda reason: without_paths(reason, work)) as contest:
        for name in options.stacks:
            if reason := unavailable(ENTRIES[name]):
                contest.leave_out(name, reason)
                continue
            say(f"predict: preparing {name}")
            contest.begin(name, partial(start, name, task, posters, work), posters.samples)
        contest.run(options.rounds)
        versions = {name: process.ready["versions"] for name, process in contest.running.items()}
    rounds = contest.rounds
    profile = {"profile": profiled(task, posters, work)} if options.profile else {}
    return {
        "samples": posters.samples,
        "median_width": posters.median_width,
        "median_height": posters.median_height,
        "images_per_second": {n: round(median(map(rate, r)), 1) for n, r in rounds.items() if r},
        "ratios": {ours: ratios(rounds, ours) for ours in OURS if rounds.get(ours)},
        "left_out": contest.left_out,
        "versions": versions,
        **profile,
    }


def profiled(task: dict[str, Any], posters: PosterSet, work: Path) -> dict[str, Any]:
    """Where the time of a pass of ours over the shards goes. Raises UserError if it fails."""
    say("predict: profile of ours_shards")
    told = {**task, "variant": "shards profile", "cache": str(posters.cache("profile"))}
    try:
        process = StackProcess(sys.executable, STACKS / "predict_ours.py", told, work / "logs" / "predict-profile.log")
        try:
            process.epoch()
            found: dict[str, Any] = process.epoch()["profile"]
        finally:
            process.close()
    except StackFailed as failure:
        raise UserError(
            "environment", f"the profile of ours_shards failed: {without_paths(str(failure), work)}"
        ) from failure
    return found


def start(name: str, task: dict[str, Any], posters: PosterSet, work: Path) -> StackProcess:
    """Start a stack and let it prepare. Raises StackFailed."""
    entry = ENTRIES[name]
    python = str(python_of(entry.peer)) if entry.peer else sys.executable
    told = {**task, "variant": entry.variant, "cache": str(posters.cache(name))}
    return StackProcess(python, STACKS / entry.script, told, work / "logs" / f"predict-{name}.log")


def ratios(rounds: dict[str, Rounds], ours: str) -> dict[str, float]:
    """Ours divided by every other stack: the median of the ratios within a round."""
    return {
        name: round(median(rate(a) / rate(b) for a, b in zip(rounds[ours], others, strict=False)), 3)
        for name, others in rounds.items()
        if others and name not in OURS
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="posters (default: drawn)")
    parser.add_argument("--model", type=Path, help="model folder (default: an untrained one of --architecture)")
    parser.add_argument("--architecture", default="resnet50", help="of timm (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="its input in pixels (default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--batch", type=int, default=0, help="for all (default: 32 on a CPU, 128 on a GPU)")
    parser.add_argument("--samples", type=int, default=1000, help="at most so many posters")
    parser.add_argument("--repeat", type=int, default=1, help="times that each poster comes, under other keys")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes over the posters, 3 or more")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the forward pass and for ours")
    parser.add_argument("--profile", action="store_true", help="add a pass that says where the time of ours goes")
    parser.add_argument("--stacks", default=",".join(ENTRIES), metavar="A,B", help=f"of {', '.join(ENTRIES)}")
    parser.add_argument("--set", default="stored", choices=("stored", "short256", "large500"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--work", type=Path, default=BENCH / ".work", metavar="DIR")
    options = parser.parse_args(arguments)
    if min(options.samples, options.repeat) < 1 or options.batch < 0 or options.rounds < 3:
        raise UserError(
            "option-value", "--samples and --repeat must be at least 1, --batch 0 or more, --rounds at least 3"
        )
    options.batch = rows_for(options.batch, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    options.stacks = [name for name in options.stacks.split(",") if name]
    if unknown := [name for name in options.stacks if name not in ENTRIES]:
        raise UserError("option-value", f"--stacks: there is no {unknown[0]!r}; there are {', '.join(ENTRIES)}")
    return options


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, measure, print; return every figure."""
    work = options.work.resolve()
    with folder_lock(work):
        model = options.model or default_model(work, options.architecture, options.size)
        size = load_model_folder(model).preprocessing.image_size
        (posters,) = prepare_sets(options.images, options.samples, [options.set], work, SEED, options.repeat)
        figures = measure(posters, options, model, size, work)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{device}, {available_cores()} cores, {options.precision}; {posters.samples} posters, median "
          f"{posters.median_width}x{posters.median_height}\n")  # fmt: skip
    print("| | images/s | ours on shards ÷ it | ours on files ÷ it |\n| --- | --- | --- | --- |")
    for name, speed in figures["images_per_second"].items():
        against = [figures["ratios"].get(ours, {}).get(name) for ours in OURS]
        print(f"| {name} | {speed:.1f} | " + " | ".join("" if a is None else f"{a:.2f}" for a in against) + " |")
    return {
        "benchmark": "predict",
        "device": device,
        "machine": machine(),
        "python": platform.python_version(),
        "peers": {"transformers": PEERS["transformers"].requirements},
        "options": {
            "architecture": options.architecture if options.model is None else "of --model",
            "size": options.size,
            "precision": options.precision,
            "batch": options.batch,
            "rounds": options.rounds,
            "repeat": options.repeat,
            "compile": options.compile,
            "set": options.set,
            "drawn": options.images is None,
        },
        **figures,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for bad input."""
    try:
        options = parse(arguments)
        figures = benchmark(options)
        if options.json is not None:
            write_json(options.json, figures)
    except (UserError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
