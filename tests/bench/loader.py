"""Throughput of image loaders, ours against peers: ``python tests/bench/loader.py [--images DIR] [--json FILE]``

Every stack makes batches of 64 x 224x224 RGB with RandomResizedCrop (scale 0.35..1, ratio 3/4..4/3) and a random flip:
all that a CPU does before the copy to a device. Each runs in a process of its own (stacks/*.py, which say how they
are set up; stacks/protocol.py, what they are asked). Rounds go over all stacks in turn, so that a machine that gets
slower gets slower for all; ratios are medians of the ratios within a round. Workers stay alive between epochs, the
data lie in the page cache, the first epoch is thrown away. ``python tests/bench/peers.py`` installs the peers; those
that are missing are left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report
from measure import STACKS, Contest, StackFailed, StackProcess
from peers import PEERS, python_of, status_of
from posterdata import SETS, PosterSet, prepare_sets

from shards.errors import UserError
from shards.executors.local import available_cores
from shards.storage.files import write_json
from shards.storage.lock import folder_lock

BENCH = Path(__file__).resolve().parent
BATCH = 64
SEED = 0
#: What every stack has to do.
WORK = {"batch": BATCH, "size": 224, "seed": SEED, "scale": (0.35, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}


@dataclass(frozen=True)
class Entry:
    """A row of the table: a stack, and which variant of it."""

    script: str
    variant: str = ""
    peer: str = ""
    """Its venv under .peers; none means this interpreter."""

    @property
    def family(self) -> str:
        return self.script.removesuffix(".py")


STACK_ENTRIES: dict[str, Entry] = {
    "decode_only": Entry("decode_only.py"),
    "webdataset_float": Entry("webdataset_pil.py", "float"),
    "webdataset_uint8": Entry("webdataset_pil.py", "uint8"),
    "timm": Entry("timm_folder.py"),
    "torchvision_image": Entry("torch_folder.py", "decode_image"),
    "torchvision_jpeg": Entry("torch_folder.py", "decode_jpeg"),
    "torchcodec": Entry("torch_folder.py", "torchcodec", "torchcodec"),
    "spdl": Entry("spdl_ffmpeg.py", peer="spdl"),
    "litdata": Entry("litdata_stream.py", peer="litdata"),
    "mosaic_streaming": Entry("mosaic_mds.py", peer="mosaic_streaming"),
    "dali_cpu": Entry("dali_cpu.py", peer="dali_cpu"),
    "ffcv_jpeg": Entry("ffcv_beton.py", "jpeg", "ffcv"),
    "ffcv_raw": Entry("ffcv_beton.py", "raw", "ffcv"),
    "ours_device": Entry("ours.py", "device"),
    "ours_cpu": Entry("ours.py", "cpu"),
    "ours_float": Entry("ours.py", "float"),
    "ours_engine": Entry("ours.py", "engine"),
}


def unavailable(entry: Entry) -> str:
    """Why a stack cannot be started, or nothing."""
    if not (STACKS / entry.script).exists():
        return f"stacks/{entry.script} is not there"
    if entry.peer:
        status = status_of(entry.peer)
        return "" if status["ok"] and python_of(entry.peer).exists() else status["reason"] or "its venv is gone"
    return ""


def without_paths(text: str, work: Path) -> str:
    """A reason without the folders of this machine."""
    for path, name in ((work, "WORK"), (BENCH.parents[1], "REPOSITORY"), (sys.prefix, "VENV"), (Path.home(), "~")):
        text = text.replace(str(path), name)
    return text


def measure_set(posters: PosterSet, names: list[str], rounds: int, work: Path) -> dict[str, Any]:
    """All stacks on one data set."""
    cores = available_cores()
    stacks: dict[str, dict[str, Any]] = {name: {} for name in names}
    with Contest(names, posters.name, lambda reason: without_paths(reason, work)) as contest:
        for name in names:
            if reason := unavailable(STACK_ENTRIES[name]):
                contest.leave_out(name, reason)
                continue
            say(f"{posters.name}: preparing {name}")
            # Some drop a short last batch.
            cold = contest.begin(name, partial(start, posters, name, cores, work), posters.samples - BATCH)
            if cold is not None:
                ready = contest.running[name].ready
                stacks[name] = {"work": ready["work"], "versions": ready["versions"]}
                stacks[name]["cold_first_batch_seconds"] = round(cold["first_batch"], 4)
        contest.run(rounds)
        for name in list(contest.running):
            try:
                peak = contest.running[name].epoch_memory()
            except StackFailed as failure:
                contest.leave_out(name, str(failure))
                continue
            stacks[name].update(report.summary(contest.rounds[name], cores))
            stacks[name]["peak_memory_mb"] = round(peak["own"])
            stacks[name]["peak_pss_mb"] = round(peak["pss"])
            stacks[name]["rounds"] = contest.rounds[name]
    stacks.update({name: {"reason": reason} for name, reason in contest.left_out.items()})
    return {
        "samples": posters.samples,
        "mean_bytes": posters.mean_bytes,
        "median_width": posters.median_width,
        "median_height": posters.median_height,
        "stacks": stacks,
        "ratios": report.all_ratios(contest.rounds),
    }


def start(posters: PosterSet, name: str, cores: int, work: Path) -> StackProcess:
    """Start a stack and let it prepare. Raises StackFailed."""
    entry = STACK_ENTRIES[name]
    task = {
        **WORK,
        "variant": entry.variant,
        "cores": cores,
        "set": posters.name,
        "samples": posters.samples,
        "files": str(posters.files),
        "shards": str(posters.shards),
        "tars": [str(tar) for tar in posters.tars],
        "cache": str(posters.cache(name)),
    }
    python = str(python_of(entry.peer)) if entry.peer else sys.executable
    return StackProcess(python, STACKS / entry.script, task, work / "logs" / f"{posters.name}-{name}.log")


def say(text: str) -> None:
    """Progress, for people who watch."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on, without its name."""
    facts = dict(
        [part.strip() for part in line.split(":", 1)]
        for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()  # the first core's
        if ":" in line
    )
    model = facts.get("model name", platform.machine())
    if "cpu family" in facts:  # "AMD EPYC" alone may be any of five generations
        model += f", family {facts['cpu family']} model {facts['model']}"
    if "avx512f" in facts.get("flags", "").split():
        model += ", AVX-512"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": available_cores(), "memory_gb": round(memory / 1e9)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="posters, sub-folders included (default: drawn)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--samples", type=int, default=2000, help="at most so many posters (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs of every stack, 3 or more (default: 3)")
    parser.add_argument("--stacks", metavar="A,B", help=f"of {', '.join(STACK_ENTRIES)}, or all of a library")
    parser.add_argument("--sets", default=",".join(SETS), metavar="A,B", help=f"of {', '.join(SETS)}")
    parser.add_argument(
        "--work", type=Path, default=BENCH / ".work", metavar="DIR", help="where data sets are kept for the next run"
    )
    options = parser.parse_args(arguments)
    if options.samples < 1:
        raise UserError("option-value", f"--samples must be at least 1, not {options.samples}")
    if options.rounds < 3:
        raise UserError("option-value", f"--rounds must be at least 3, not {options.rounds}: fewer have no median")
    options.sets = chosen("--sets", options.sets, {name: (name,) for name in SETS})
    options.stacks = chosen(
        "--stacks",
        options.stacks or ",".join(STACK_ENTRIES),
        {name: (name, name.partition("_")[0], entry.family, entry.peer) for name, entry in STACK_ENTRIES.items()},
    )
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise UserError("option-value", f"--json must name a file in a folder that exists, not {options.json}")
    return options


def chosen(option: str, text: str, aliases: dict[str, tuple[str, ...]]) -> list[str]:
    """The names that a comma-separated list asks for, in the table's order."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    for part in asked:
        if not any(part in names for names in aliases.values()):
            raise UserError("option-value", f"{option}: there is no {part!r}; there are {', '.join(aliases)}")
    if not asked:
        raise UserError("option-value", f"{option} names nothing; there are {', '.join(aliases)}")
    return [name for name, names in aliases.items() if any(part in names for part in asked)]


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, measure, print; return every figure."""
    work = options.work.resolve()
    results: dict[str, Any] = {}
    with folder_lock(work):
        for posters in prepare_sets(options.images, options.samples, options.sets, work, SEED):
            result = measure_set(posters, options.stacks, options.rounds, work)
            results[posters.name] = result
            size = f"{posters.median_width}x{posters.median_height}, {posters.mean_bytes / 1000:.1f} KB"
            print(f"\n{posters.name}: {posters.samples} posters, median {size}; {available_cores()} cores\n")
            print(f"{report.table(result)}\n{report.ratio_lines(result)}", flush=True)
    nothing: dict[str, None] = dict.fromkeys(report.PEERS)
    headline = results.get(report.HEADLINE, {}).get("ratios", {})
    return {
        "benchmark": "loader",
        "machine": machine(),
        "python": platform.python_version(),
        "peers": {name: peer.requirements for name, peer in PEERS.items()},
        "options": {**WORK, "samples": options.samples, "rounds": options.rounds, "drawn": options.images is None},
        "memory": "peak PSS of a stack's processes without pages of files, at 10 Hz, in an epoch that is not timed",
        "ratios": headline.get("device", nothing),
        "ratios_cpu": headline.get("cpu", nothing),
        "sets": results,
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
