"""A rehearsal at full size: 90,000 posters through all steps, with the time, the memory and the disk of each step.

    python tests/bench/rehearsal.py --images DIR --metadata CSV --weights FILE --out OUT [--posters 90000]
    python tests/bench/rehearsal.py --table OUT/rehearsal.json

The second command prints the results of the first one as a Markdown table. The posters of --images are repeated under
new ids as hard links, so OUT has one copy of each. `shards build` never puts copies of a poster into different splits,
unless the table has splits. So the table has a column of random splits, and the metrics mean nothing.

Each step is a `posters` command in a process of its own. A finished step is not run again: after a stop, start the same
command again. Memory is the peak of the sum over all processes of the step, sampled once a second: with the pages of
files, which the system can drop (PSS), and without. At the end, the ids and updates in the outputs are compared with
the table and the configuration. The script fails if one of them is missing, repeated or not expected.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shards.dataset.manifest import Manifest  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.storage.files import read_json, write_json  # noqa: E402
from shards.versions import library_versions  # noqa: E402

from measure import memory, process_tree  # noqa: E402 # isort: skip
from rehearsal_data import (  # noqa: E402 # isort: skip
    Failed, check_predictions, check_set, check_updates, repeat_posters, update_numbers,
)  # fmt: skip

BATCH = 32
SAMPLE_SECONDS = 1.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Step:
    """One `posters` command."""

    name: str
    command: Callable[[], Sequence[object]]
    """Returns the words after ``posters``. Called when all earlier steps are finished."""
    output: Path
    images: Callable[[], int]
    """Returns the number of images that the step reads. Called after the step."""
    kill: Callable[[], bool] | None = None
    """Returns whether the command is now to be killed. None if the command is not killed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a step."""

    seconds: float
    cpu_seconds: float
    """User and system time of all its processes."""
    images: int
    own_bytes: int
    """Peak memory without the pages of files."""
    pss_bytes: int
    """Peak memory with the pages of files."""
    output_bytes: int
    """Sum of the sizes of all files of the output."""
    starts: int
    """Number of starts. With more than one, the other numbers are those of the last start."""


class Rehearsal:
    """All steps in one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        out = args.out.absolute()
        self.args, self.out, self.json = args, out, args.json or args.out / "rehearsal.json"
        self.shards, self.part, self.frozen, self.tuned = (
            out / name for name in ("shards", "shards-part", "run-frozen", "run-tuned")
        )
        self.report, self.predictions = out / "report", out / "predictions"
        names = ("posters", "updates", "epochs", "predict", "override")
        options = {name: getattr(args, name) for name in names}
        self.state: dict[str, Any] = {"options": options, "steps": {}, "starts": {}}
        if self.json.exists():
            self.state = read_json(self.json, "rehearsal")
            if self.state["options"] != options:
                problem = f"{self.json} is from a rehearsal with other options"
                raise UserError("option-conflict", f"{problem}; give the same options, or choose another --out")

    def run(self) -> None:
        """Run the steps that are not finished, and check the outputs. Raises Failed."""
        repeat_posters(self.args.metadata, self.args.images, self.args.posters, self.out)
        for step in self.steps():
            if step.name not in self.state["steps"]:
                print(f"{time.strftime('%H:%M:%S')} {step.name}", file=sys.stderr, flush=True)
                self.state["starts"][step.name] = self.state["starts"].get(step.name, 0) + 1
                self._save()
                self.state["steps"][step.name] = asdict(self._cost(step))
                self._save()
        rejected = check_set(self.out / "posters.csv", self.shards)
        check_predictions(self.predictions, self.shards, "" if self.args.predict == "all" else "test")
        check_updates(self.tuned / "log.csv", self.updates())
        machine = {"cores": len(os.sched_getaffinity(0)), "versions": library_versions()}
        self.state |= {"rejected": rejected, "updates": self.updates(), "complete": True, **machine}
        self._save()

    def _save(self) -> None:
        write_json(self.json, self.state)

    def steps(self) -> list[Step]:
        """All steps, in order."""
        model = ("--model", self.frozen, "--shards", self.shards, "--precision", "bf16")
        splits = ("train", "val", "test") if self.args.predict == "all" else ("test",)
        predict = ("predict", *model, *(() if self.args.predict == "all" else ("--split", "test")))
        report = ("evaluate", *model, "--report", self.report)
        return [
            Step("build", self._build, self.shards, lambda: self.args.posters),
            Step("train on cached features", self._train, self.frozen, lambda: self.samples("train", "val")),
            Step("index a part of the set", self._index, self.part, lambda: samples(self.part)),
            Step("fine-tune, killed", self._tune, self.tuned, lambda: self.state["killed"] * BATCH, self._killed),
            Step(
                "fine-tune, resumed",
                self._tune,
                self.tuned,
                lambda: (self.updates() - self.state["resumed"]) * BATCH + samples(self.part, "val"),
            ),
            Step("evaluate", lambda: ("evaluate", *model), self.frozen / "model", lambda: self.samples("test")),
            Step("evaluate with a report", lambda: report, self.report, lambda: self.samples("test")),
            Step(
                "predict",
                lambda: (*predict, "--out", self.predictions),
                self.predictions,
                lambda: self.samples(*splits),
            ),
        ]

    def _build(self) -> Sequence[object]:
        return (
            *("shards", "build", "--images", self.out / "posters", "--metadata", self.out / "posters.csv"),
            *("--split-column", "split", "--out", self.shards),
        )

    def _train(self) -> Sequence[object]:
        recipe = ("--config", "best", "--data.image_size=224", f"--train.epochs={self.args.epochs}")
        return "train", *recipe, *self._common(), "--shards", self.shards, "--out", self.frozen

    def _index(self) -> Sequence[object]:
        """As many training shards as the updates need, and one validation shard."""
        manifest = Manifest.read(self.shards)
        chosen, enough = manifest.of_split("val")[:1], self.args.updates * BATCH
        for shard in manifest.of_split("train"):
            if enough > 0:
                chosen.append(shard)
                enough -= shard.samples
        return "shards", "index", *(self.shards / shard.name for shard in chosen), "--out", self.part

    def _tune(self) -> Sequence[object]:
        """The reference recipe, for as many whole epochs as the updates need."""
        epochs = self.updates() // -(-samples(self.part, "train") // BATCH)
        steps = (f"--train.epochs={epochs}", f"--train.checkpoint_steps={self._checkpoint_steps()}")
        recipe = ("--config", "resnet50", f"--train.batch_size={BATCH}", "--train.log_steps=1", *steps)
        return "train", *recipe, *self._common(), "--shards", self.part, "--out", self.tuned

    def _common(self) -> Sequence[object]:
        weights = f"--model.weights={self.args.weights.absolute()}"
        others = [f"--{option}" for option in self.args.override]
        return weights, "--train.precision=bf16", "--train.patience=0", *others, "--resume"

    def _checkpoint_steps(self) -> int:
        return max(1, self.args.updates // 6)

    def updates(self) -> int:
        """Number of updates of fine-tuning, in whole epochs."""
        of_epoch = -(-samples(self.part, "train") // BATCH)
        return -(-self.args.updates // of_epoch) * of_epoch

    def samples(self, *splits: str) -> int:
        """Number of samples in some splits of the whole set."""
        return sum(samples(self.shards, split) for split in splits)

    def _killed(self) -> bool:
        """Whether fine-tuning is in the middle of its updates, and between two checkpoints."""
        update = max(update_numbers(self.tuned / "log.csv"), default=0)
        saved = [int(path.name.removeprefix("step-")) for path in self.tuned.glob("checkpoints/step-" + "[0-9]" * 8)]
        if not saved or update < self.updates() // 2 + self._checkpoint_steps() // 2:
            return False
        self.state |= {"killed": update, "resumed": max(saved)}
        return True

    def _cost(self, step: Step) -> Cost:
        """Run a step. Raises Failed if it fails, or if it ends before it can be killed."""
        log = self.out / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "toolkit", *map(str, step.command())]
        started = time.perf_counter()
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        try:
            status, cpu_seconds, peak = watch(process.pid, step.kill)
        except BaseException:  # the rehearsal itself is stopped
            kill(process.pid)
            raise
        process.returncode = status  # watch has waited for the child, not Popen
        seconds = time.perf_counter() - started
        expected = 0 if step.kill is None else -signal.SIGKILL
        if status != expected:
            last = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
            raise Failed(f"step {step.name!r} ended with status {status}, not {expected}; the end of {log}: {last}")
        written = sum(path.stat().st_size for path in step.output.rglob("*") if path.is_file())
        starts = self.state["starts"][step.name]
        return Cost(seconds, cpu_seconds, step.images(), *peak, written, starts)


def samples(shards: Path, split: str = "") -> int:
    """Number of samples of a shard set, in one split or in all."""
    return sum(shard.samples for shard in Manifest.read(shards).shards if split in ("", shard.split))


def watch(pid: int, to_kill: Callable[[], bool] | None) -> tuple[int, float, tuple[int, int]]:
    """Wait for a child. Return its status (-9 if killed), CPU seconds, and peak bytes (without files, with files)."""
    own, pss, sampled = 0.0, 0.0, 0.0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            peak = int(own * 1e6), int(pss * 1e6)
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, peak
        if time.perf_counter() - sampled > SAMPLE_SECONDS:
            now = memory(pid)
            own, pss, sampled = max(own, now["own"]), max(pss, now["pss"]), time.perf_counter()
        if to_kill is not None and to_kill():
            kill(pid)
        time.sleep(POLL_SECONDS)


def kill(pid: int) -> None:
    """Send SIGKILL to a child and to all processes below it."""
    for member in reversed(process_tree(pid)):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended in the meantime


def table(state: dict[str, Any]) -> str:
    """Return the Markdown table of a rehearsal."""
    lines = [
        "| step | time | CPU time | images/s | memory | with pages of files | size of the output |",
        "| --- " + "| ---: " * 6 + "|",
    ]
    for name, row in state["steps"].items():
        cost = Cost(**row)
        again = f" (start {cost.starts})" if cost.starts > 1 else ""
        lines.append(
            f"| {name}{again} | {duration(cost.seconds)} | {duration(cost.cpu_seconds)} | "
            f"{cost.images / cost.seconds:,.1f} | {cost.own_bytes / 2**20:,.0f} MiB | "
            f"{cost.pss_bytes / 2**20:,.0f} MiB | {cost.output_bytes / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``85 s``, or ``12.3 min`` from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of posters")
    parser.add_argument("--metadata", type=Path, help="CSV with the ids in the first column")
    parser.add_argument("--weights", type=Path, help="weights of the backbone, with the names of timm")
    parser.add_argument("--out", type=Path, help="folder for everything that is written")
    parser.add_argument("--posters", type=int, default=90_000, help="size of the set (default 90000)")
    parser.add_argument("--updates", type=int, default=300, help="least number of fine-tuning updates (default 300)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the training on features (default 5)")
    parser.add_argument("--predict", choices=("all", "test"), default="all", help="what to predict (default all)")
    parser.add_argument("--override", nargs="+", default=[], help="options of both trainings: KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file of the results (default OUT/rehearsal.json)")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of these results, and run nothing")
    args = parser.parse_args(argv)
    missing = [name for name in ("images", "metadata", "weights", "out") if getattr(args, name) is None]
    if missing and args.table is None:
        parser.error(f"--{missing[0]} is required")
    if min(args.posters, args.updates, args.epochs) < 1:
        parser.error("--posters, --updates and --epochs take whole numbers from 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rehearsal, or print its table. Return the exit status."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if args.table is None:
            if not args.weights.is_file():
                raise UserError("path-missing", f"weights not found: {args.weights}")
            Rehearsal(args).run()
        state = read_json(results := args.table or args.json or args.out / "rehearsal.json", "rehearsal")
        if not isinstance(state, dict) or "steps" not in state:
            raise UserError("option-value", f"{results} has no results of a rehearsal")
        print(table(state))
    except (UserError, OSError, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Failed) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
