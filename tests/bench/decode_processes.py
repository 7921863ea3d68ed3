"""Do decoding threads slow the thread that starts GPU kernels, and do decoding processes? Measured without a GPU.

    python tests/bench/decode_processes.py [--images DIR] [--sets stored,large500] [--json FILE]

The consumer is a thread that behaves like one that launches a forward pass: it calls a ResNet50 whose layers have four
channels, on images of 32x32. It has all modules and operations of a real one (the benchmark counts them), each takes
the global interpreter lock and gives it up as a real one does, but hardly computes. Where a GPU of some images/s is
imagined, the consumer waits for the batch before the last one, as prediction does. Modes alternate; figures are medians
over rounds, and ratios are medians of the ratios to the consumer alone within a round.

"simulated" stands for more cores than there are: the decoder sleeps for the CPU time of an image, and the code that
holds the lock is real. The CPU time of 15 such threads is the lock's time per image: code under the lock, and changes
from thread to thread. The model at the end is arithmetic from measured figures, and not a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from launching import Asleep, Nothing, Sleeping, consumer
from loader import machine, say
from posterdata import SETS, PosterSet, prepare_sets

from shards.errors import UserError
from shards.storage.files import write_json
from shards.storage.lock import folder_lock
from toolkit.config.schema import CropConfig
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import MicroBatch, TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms import jpeg
from toolkit.data.transforms.batch_transform import Transforms, train_transforms
from toolkit.device.defaults import usable_device

BATCH, PREFETCH, SIDE = 256, 4, 224
#: Images/s of imagined GPUs. 0: no GPU, so the consumer is as fast as it can. ResNet50 trains with 4,670 on an H200.
REAL, SIMULATED = (0, 500), (0, 4_670, 20_000)
#: Mode → threads and processes. With simulated decoding, some sleep instead.
MODES = {"threads 1": (1, 0), "threads 2": (2, 0), "processes 1": (0, 1), "processes 2": (0, 2)}
WIDE: dict[str, tuple[int, int]] = {"threads 6": (6, 0), "threads 15": (15, 0), "processes 8": (0, 8)}
ALL = {**MODES, **WIDE}


def endless(count: int) -> Iterator[MicroBatch]:
    """Micro-batches of one epoch after the other."""
    plan = TrainPlan(GlobalOrder(count, 0), min(BATCH, count))
    return itertools.chain.from_iterable(plan.rest_of_epoch(epoch, 0, 1) for epoch in itertools.count())


def block(works: Iterator[Any], launch: Callable[[], None], rate: int, seconds: float) -> dict[str, float]:
    """Take batches for some seconds; the launches of each, and the wait for a GPU of ``rate`` images/s."""
    for _ in range(PREFETCH + 1):  # these were decoded while another mode was measured
        next(works)
    images = batches = 0
    launching = taking = needed = 0.0
    cpu = time.process_time() - time.thread_time()
    started = free = time.perf_counter()
    while time.perf_counter() - started < seconds:
        own = time.thread_time()
        work = next(works)
        taking += time.thread_time() - own
        got = time.perf_counter()
        own = time.thread_time()
        launch()
        needed += time.thread_time() - own
        launching += time.perf_counter() - got
        count = BATCH if work is None else len(work.indices)
        previous, free = free, max(free, got) + (count / rate if rate else 0.0)
        time.sleep(max(0.0, previous - time.perf_counter()))
        images, batches = images + count, batches + 1
    took = max(time.perf_counter(), free) - started
    cpu = time.process_time() - time.thread_time() - cpu
    micro = {"take_us": taking / images * 1e6, "threads_us": cpu / images * 1e6}
    launches = {"launch_ms": launching / batches * 1e3, "launch_cpu_ms": needed / batches * 1e3}
    return {"images_s": images / took, **launches, **micro}


def contest(
    loaders: dict[str, Loader], rates: tuple[int, ...], transforms: Sequence[Transforms], options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """All loaders against the consumer alone, for imagined GPUs of these rates."""
    launch = consumer()
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {str(rate): {} for rate in rates}
    with contextlib.ExitStack() as stack:
        streams: dict[str, Any] = {"alone": itertools.repeat(None)}
        for (mode, loader), ways in zip(loaders.items(), transforms, strict=True):
            stack.enter_context(loader)
            streams[mode] = loader.decoded(endless(len(loader.source)), ways)
            stack.enter_context(contextlib.closing(streams[mode]))
            next(streams[mode])
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for rate in rates:
                for mode, works in streams.items():
                    rounds[str(rate)].setdefault(mode, []).append(block(works, launch, rate, options.seconds))
    return {rate: {mode: summary(found, by["alone"]) for mode, found in by.items()} for rate, by in rounds.items()}


def summary(rounds: list[dict[str, float]], alone: list[dict[str, float]]) -> dict[str, float]:
    """Medians over rounds, and of the ratios to the consumer alone."""
    found = {name: median(one[name] for one in rounds) for name in rounds[0]}
    pairs = list(zip(rounds, alone, strict=True))
    found["rate_ratio"] = median(one["images_s"] / base["images_s"] for one, base in pairs)
    found["launch_ratio"] = median(one["launch_ms"] / base["launch_ms"] for one, base in pairs)
    return found


def on_device(reader: ShardReader, options: argparse.Namespace) -> dict[str, float]:
    """Images/s of a forward pass on the device that is asked for: with each crew, and on a batch that is there."""
    device = torch.device(options.device)
    kind: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    network = timm.create_model(options.model).eval().to(**kind, memory_format=torch.channels_last)
    train, count = CropConfig(image_size=SIDE, geometry="device"), min(BATCH, len(reader))
    rounds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        streams: dict[str, Any] = {"resident": itertools.repeat(torch.zeros(count, SIDE, SIDE, 3, **kind))}
        for mode, (threads, processes) in ALL.items():
            loader = stack.enter_context(Loader(reader, threads or 1, PREFETCH, device=device, processes=processes))
            ways = train_transforms(reader, train, 0, 0, device)
            streams[mode] = stack.enter_context(contextlib.closing(loader.batches(endless(len(reader)), ways)))
        for _ in range(options.rounds + 1):  # the first round starts processes and chooses kernels
            for mode, stream in streams.items():
                images, started, last = 0, time.perf_counter(), None
                while time.perf_counter() - started < options.seconds:
                    found = next(stream)
                    batch = found if mode == "resident" else found.images
                    logits = network(batch.permute(0, 3, 1, 2).to(torch.bfloat16))
                    if last is not None:  # as prediction does
                        last.cpu()
                    images, last = images + len(batch), logits
                rounds.setdefault(mode, []).append(images / (time.perf_counter() - started))
    return {mode: median(found[1:]) for mode, found in rounds.items()}


def model(figures: dict[str, float], mode: str, cores: int, rate: int) -> float:
    """Images/s by arithmetic. The lock is a server: the consumer's launches get the share that decoders leave."""
    threads, processes = ALL.get(mode) or ((cores - 1, 0) if mode == "threads" else (0, cores - 1))
    cost, own = figures["image"], figures["take_processes" if processes else "take_threads"]
    low, high = 0.0, 1e6
    for _ in range(60):  # the largest rate that is possible
        x = (low + high) / 2
        left = 1 - x * figures["lock"] if threads else 1.0
        main = x * (figures["launch"] / BATCH / left + own) if left > 0 else 1e9  # share of the time
        fits = main <= 1 and x * cost <= min(threads + processes, cores - main) and (not rate or x <= rate)
        low, high = (x, high) if fits else (low, x)
    return low


def measure(posters: PosterSet, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one set of posters."""
    reader = ShardReader.of_split(posters.shards, "train")
    transforms = train_transforms(reader, CropConfig(image_size=SIDE, geometry="device"), 0, 0, torch.device("cpu"))
    loaders = {mode: Loader(reader, threads or 1, PREFETCH, processes=n) for mode, (threads, n) in MODES.items()}
    real = contest(loaders, REAL, [transforms] * len(MODES), options)
    flat = real["0"]
    whole = flat["threads 1"]["threads_us"] / 1e6
    true, loaders = jpeg.simplejpeg, {}
    for mode, (threads, n) in WIDE.items():
        loaders[mode] = Loader(Nothing() if n else reader, threads or 1, PREFETCH, processes=n)
    try:
        ways = [Asleep(whole) if n else Sleeping(transforms, whole) for _, n in WIDE.values()]
        wide = contest(loaders, SIMULATED, ways, options)
    finally:
        setattr(jpeg, "simplejpeg", true)  # noqa: B010 # as above
    figures = {"image": whole, "lock": wide["0"]["threads 15"]["threads_us"] / 1e6}
    figures |= {"launch": flat["alone"]["launch_cpu_ms"] / 1e3}
    figures |= {f"take_{kind}": flat[f"{kind} 1"]["take_us"] / 1e6 for kind in ("threads", "processes")}
    errors = {mode: model(figures, mode, 2, 0) / flat[mode]["images_s"] - 1 for mode in MODES}
    errors |= {mode: model(figures, mode, 64, 0) / wide["0"][mode]["images_s"] - 1 for mode in WIDE}
    table = {
        f"{kind}, {cores} cores": {rate: model(figures, kind, cores, rate) for rate in SIMULATED}
        for cores in (2, 4, 8, 16)
        for kind in ("threads", "processes")
    }
    device = on_device(reader, options) if options.device else {}
    found = {"seconds": figures, "real": real, "simulated": wide, "model": table, "model_error": errors}
    return {**found, "device": device}


def show(name: str, found: dict[str, Any]) -> None:
    """Print the figures of one set."""
    print(f"\n{name}: per image or launch: " + ", ".join(f"{k} {v * 1e6:.1f} us" for k, v in found["seconds"].items()))
    for title in ("real", "simulated"):
        for rate, by in found[title].items():
            gpu = f"a GPU of {int(rate):,} images/s" if rate != "0" else "no GPU, flat out"
            print(f"\n{title} decoding, {gpu}\n\n| mode | images/s | to alone | launches, ms | to alone |\n|-|-|-|-|-|")
            for mode, row in by.items():
                numbers = f"{row['images_s']:,.0f} | {row['rate_ratio']:.3f} | {row['launch_ms']:.2f}"
                print(f"| {mode} | {numbers} | {row['launch_ratio']:.2f} |")
    print("\nMODEL, not a measurement: images/s | " + " | ".join(f"GPU {rate:,}" for rate in SIMULATED) + "\n|-|-|-|-|")
    for row, rates in found["model"].items():
        print(f"| {row} | " + " | ".join(f"{x:,.0f}" for x in rates.values()) + " |")
    print("model / measured - 1: " + ", ".join(f"{m} {e:+.0%}" for m, e in found["model_error"].items()))
    print("\nimages/s on the device: " + (", ".join(f"{m} {x:,.0f}" for m, x in found["device"].items()) or "none"))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="posters (default: drawn)")
    parser.add_argument("--sets", default="stored,large500", help=f"of {', '.join(SETS)}")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a block")
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / ".work", metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "", help="for a real forward pass")
    parser.add_argument("--model", default="resnet50", help="for a real forward pass, any timm architecture")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.sets.split(",") if name not in SETS]:
        parser.error(f"--sets: there is no {unknown[0]!r}; there are {', '.join(SETS)}")
    if options.samples < 1 or options.rounds < 1 or not options.seconds > 0:
        parser.error("--samples, --rounds and --seconds must be more than 0")
    torch.set_num_threads(1)
    try:
        if options.device:
            usable_device(options.device)  # it is first used after all other measurements
        with folder_lock(options.work):
            sets = prepare_sets(options.images, options.samples, options.sets.split(","), options.work, 0)
            results = {posters.name: measure(posters, options) for posters in sets}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, found in results.items():
        show(name, found)
    if options.json is not None:
        drawn = options.images is None
        about = {"machine": machine(), "torch": torch.__version__, "drawn": drawn, "rounds": options.rounds}
        about |= {"load_average": os.getloadavg()[1], "benchmark": "decode_processes"}
        about |= {"device": torch.cuda.get_device_name() if options.device == "cuda" else options.device}
        write_json(options.json, {**about, "sets": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
