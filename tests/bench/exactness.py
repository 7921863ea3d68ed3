"""Does every sample come exactly once? Our loader and its peers on the same tars, in real processes, judged alike.

    python tests/bench/exactness.py [--stacks WORD,WORD] [--json FILE]

Prints a Markdown table: a row for each stack of the package ``exact``, a column for each promise of
toolkit/data/sampling/plan.py. The peers are negative controls: a check that none of them fails would prove little about
us. What is compared is which sample ids a rank is handed at which step. Our row is ShardLoader, which `posters train`
uses too. ``python tests/bench/peers.py`` installs the peers that need a venv; the row of a peer that is missing says
so. tests/toolkit/test_negative_controls.py runs a part of this in `make test`, and the rest in `make test-long`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exact import STACKS
from exact.judge import CHECKS, SAMPLES, Run, Runs, Verdict, judge_stack
from exact.stack import GLOBAL_BATCH, IMAGE_SIZE, RESUME_STEP, SHARD_SIZES, WORLDS
from exactness_worker import Task, rank_main
from peers import status_of
from PIL import Image

#: What most stacks of this interpreter import.
PRELOADED = ["accelerate", "datasets", "timm.data", "toolkit.data.shard_loader", "torch.distributed", "webdataset"]
#: Seconds after which the processes of a stack count as hanging, also on a machine with other work.
TIMEOUT = 300.0
WHOLE = ("train", "eval", "few_train", "few_eval")


@dataclass(frozen=True)
class Row:
    """What was found out about a stack."""

    verdicts: dict[str, Verdict]
    versions: dict[str, str]
    missing: str = ""
    """Why it could not run."""


def make_shards(folder: Path) -> None:
    """Tars of tiny JPEGs whose key and .cls are the sample's id, and the _info.json that timm's reader asks for."""
    names, first = [], 0
    for number, size in enumerate(SHARD_SIZES):
        names.append(f"shard-{number:03d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for sample in range(first, first + size):
                jpeg = io.BytesIO()
                Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (sample, 99, 99)).save(jpeg, "JPEG")
                for suffix, data in (("jpg", jpeg.getvalue()), ("cls", str(sample).encode())):
                    member = tarfile.TarInfo(f"{sample:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        first += size
    splits = {"whole": len(names)} | {few(world): world - 1 for world in WORLDS if world > 1}
    info = {}
    for name, count in splits.items():
        sizes = SHARD_SIZES[:count]
        info[name] = {"name": name, "filenames": names[:count], "shard_lengths": sizes, "num_samples": sum(sizes)}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))


def few(world: int) -> str:
    """Name of the split with one shard less than ranks."""
    return f"few{world - 1}"


def run_stack(stack: str, worlds: Sequence[int], shards: Path, timeout: float = TIMEOUT) -> tuple[Runs, dict[str, str]]:
    """Run all jobs of a stack at every world size; (runs, versions of its libraries)."""
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(stack, list(worlds), shards, Path(name), timeout)
        splits = ["whole", *(few(world) for world in worlds if world > 1)]
        if STACKS[stack].prepare:
            prepared = stage.run("prepare", 1, splits, ["prepare"])["prepare"]
            if prepared.problem:
                return {world: dict.fromkeys(stage.jobs, prepared) for world in worlds}, stage.versions
        runs = {}
        for world in worlds:
            own = (["whole", few(world)], WHOLE) if world > 1 else (["whole"], WHOLE[:2])
            runs[world] = stage.run("whole", world, *own)
        resumes = [f"resume_{stopped}" for stopped in worlds]
        for world in worlds:
            if STACKS[stack].resumes:
                runs[world] |= stage.run("resume", world, ["whole"], resumes)
            else:
                runs[world] |= dict.fromkeys(resumes, Run([], "not offered"))
        return runs, stage.versions


class Stage:
    """Where the processes of one stack run."""

    def __init__(self, stack: str, worlds: list[int], shards: Path, home: Path, timeout: float) -> None:
        self.stack, self.worlds, self.shards, self.home, self.timeout = stack, worlds, shards, home, timeout
        self.jobs = [*WHOLE, *(f"resume_{world}" for world in worlds)]
        self.versions: dict[str, str] = {}

    def run(self, phase: str, world: int, splits: list[str], jobs: Sequence[str]) -> dict[str, Run]:
        """Run a phase in ``world`` processes; job → run."""
        # A fork server pays for the imports once, and unlike a fork of this process it has no threads to lose.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        out = self.home / f"{phase}-{world}"
        out.mkdir()
        told = (self.stack, phase, str(self.shards), str(self.home), str(out), splits)
        # What a hang keeps from being reached is the last: resuming at another size is more than at the same.
        worlds = sorted(self.worlds, key=lambda stopped: stopped != world)
        ranks = [context.Process(target=rank_main, args=(Task(*told, rank, world, worlds),)) for rank in range(world)]
        deadline = time.monotonic() + self.timeout
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hangs = any(process.is_alive() for process in ranks)
        for process in ranks:
            process.kill()
            process.join()
        if (out / "versions.json").exists():
            self.versions = json.loads((out / "versions.json").read_text())
        return _read_runs(out, world, jobs, "hangs" if hangs else "dies")


def _read_runs(out: Path, world: int, jobs: Sequence[str], why_missing: str) -> dict[str, Run]:
    runs = {}
    for job in jobs:
        files = [out / f"{job}-{rank}.json" for rank in range(world)]
        if all(file.exists() for file in files):
            results = [json.loads(file.read_text()) for file in files]
            problem = next((result["problem"] for result in results if result["problem"]), "")
            runs[job] = Run([result["steps"] for result in results], problem)
        else:
            runs[job], why_missing = Run([], why_missing), "not reached"  # only the first of them hung
    return runs


def measure(stack: str, shards: Path) -> Row:
    """The row of a stack."""
    if (peer := STACKS[stack].peer) and not status_of(peer)["ok"]:
        return Row({}, {}, status_of(peer)["reason"])
    runs, versions = run_stack(stack, WORLDS, shards)
    return Row(judge_stack(runs), versions)


def markdown(rows: dict[str, Row]) -> str:
    """The table."""
    lines = [["", "version", *CHECKS], ["---"] * (2 + len(CHECKS))]
    for stack, row in rows.items():
        versions = ", ".join(f"{name} {number}" for name, number in row.versions.items())
        cells = [row.verdicts[check].text if check in row.verdicts else "-" for check in CHECKS]
        lines.append([stack, row.missing or versions, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stacks", metavar="WORD,WORD", help="only those whose name has one of these words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the verdicts here")
    options = parser.parse_args()
    if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        parser.exit(2, f"error: --json must name a file in a folder that exists, not {options.json}\n")
    words = [word.strip().lower() for word in (options.stacks or "").split(",") if word.strip()]
    options.stacks = [name for name in STACKS if not words or any(word in name.lower() for word in words)]
    if not options.stacks:
        parser.exit(2, f"error: --stacks: no name has one of these words; there are {'; '.join(STACKS)}\n")
    return options


def main() -> int:
    options = parse()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        make_shards(Path(name))
        for stack in options.stacks:
            print(f"{stack} ...", file=sys.stderr, flush=True)
            rows[stack] = measure(stack, Path(name))
    sizes, worlds = (", ".join(map(str, numbers)) for numbers in (SHARD_SIZES, WORLDS))
    print(markdown(rows))
    print(f"\n{SAMPLES} samples in shards of {sizes}; global batch {GLOBAL_BATCH}; {worlds} ranks;")
    print(f"resumed at step {RESUME_STEP}; 1→2 ranks: stopped on 1 rank, resumed on 2")
    if options.json:
        setting = {"shards": SHARD_SIZES, "global_batch": GLOBAL_BATCH, "world_sizes": WORLDS, "resumed": RESUME_STEP}
        content = {"setting": setting, "rows": {stack: asdict(row) for stack, row in rows.items()}}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
