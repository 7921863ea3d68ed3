"""One command that checks a GPU, offline: ``bash tests/bench/gpu_check.sh [--data DIR] [--wheels DIR] [--out DIR]``

    [--minutes 9] [--items tests,train] [--tiny]

Runs with the machine's own Python, which must have torch and torchvision. What else setup.cfg needs is taken from
wheels below --wheels (gpu_wheels.py) where that Python lacks it. Weights and posters come from pieces below --data
(gpu_pieces.py); an item does without what is not there, or says why it is left out. Items are in order of worth. Each
has a limit of time, and those that no time is left for are skipped. Each writes OUT/ITEM.json; OUT/summary.json has
the figures with their goals, which are printed too. Exit status: 0 if all ran, 1 if an item failed, 2 for bad input.
A missed goal does not change the exit status. Without a GPU, all sizes are tiny (--tiny), and goals are not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path.insert(0, str(BENCH))

from gpu.goals import FOUND, Found, shown, verdict  # noqa: E402
from gpu.items import ITEMS, Item, Setting, Step, read_tests  # noqa: E402
from gpu.pieces import tars_in, weights_in  # noqa: E402
from gpu.wheels import Unusable, unpack  # noqa: E402

#: No step is begun with fewer seconds than this.
LEAST = 15.0


class Check:
    """A run of the check: what is left of its time, and the names that results must not have."""

    def __init__(self, options: argparse.Namespace, work: Path, environment: dict[str, str]) -> None:
        self.options, self.work, self.environment = options, work, environment
        self.end = time.monotonic() + 60 * options.minutes
        (work / "figures").mkdir()

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, command: list[str], seconds: float) -> tuple[int | None, str]:
        """(exit status, or None if it took longer; the last lines of output). Ends all that the command started."""
        log = self.work / "log"
        with open(log, "w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=self.environment, start_new_session=True
            )
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return status, self.plain("\n".join(lines[-5:]))

    def plain(self, text: str) -> str:
        """A text without the folders of this machine."""
        names = {str(self.work): "WORK", str(ROOT): ".", sys.executable: "python", str(Path.home()): "~"}
        if self.options.data is not None:
            names[str(self.options.data.resolve())] = "DATA"
        for path, name in names.items():
            text = text.replace(path, name)
        return text


def run_item(check: Check, item: Item, setting: Setting) -> dict[str, Any]:
    """The result of an item: status, time, commands and the figures of its steps."""
    started, end = time.monotonic(), time.monotonic() + min(item.seconds if setting.gpu else 1e9, check.left)
    figures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    failures: dict[str, str] = {}
    commands: dict[str, str] = {}
    for step in item.steps(setting):
        if step.left_out:
            left_out[step.name] = step.left_out
            continue
        if end - time.monotonic() < LEAST:
            left_out[step.name] = "no time was left"
            continue
        commands[step.name] = check.plain(" ".join(step.command))
        print(f"[{check.left:4.0f} s left] {item.name}: {step.name}", flush=True)
        status, words = check.run(step.command, end - time.monotonic())
        found = figures_of(step)
        if found is not None:
            figures[step.name] = found
        if status is None:
            failures[step.name] = "it took longer than its limit"
        elif status or found is None:
            failures[step.name] = f"status {status}: {words}"
    return {
        "item": item.name,
        "what": item.what,
        "status": "failed" if failures else "ran" if figures else "left out",
        "failures": failures,
        "left_out": left_out,
        "seconds": round(time.monotonic() - started, 1),
        **setting.facts,
        "weights": setting.weights is not None,
        "tiny": setting.tiny,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commands": commands,
        "goals": [{**asdict(one), "met": one.met if judged(setting) else None} for one in found_in(item, figures)],
        "figures": figures,
    }


def figures_of(step: Step) -> dict[str, Any] | None:
    """What a step has written, which is then moved out of the next one's way."""
    if not step.figures.exists():
        return None
    found = read_tests(step.figures) if step.figures.suffix == ".xml" else json.loads(step.figures.read_text())
    step.figures.unlink()
    return dict(found)


def found_in(item: Item, figures: dict[str, Any]) -> list[Found]:
    """The figures of the summary."""
    return list(FOUND[item.name](figures))


def judged(setting: Setting) -> bool:
    """Whether a goal says something about this machine."""
    return setting.gpu and not setting.tiny


def table(results: list[dict[str, Any]], setting: Setting) -> str:
    """What people read."""
    facts = setting.facts
    lines = [
        f"\n{facts['device']} (driver {facts['driver']}, CUDA {facts['cuda']}), {facts['cores']} cores, "
        f"Python {facts['python']}, torch {facts['torch']}, timm {facts['timm']}; {facts['posters']} "
        f"{'drawn ' * facts['drawn']}posters\n",
        f"{'':62} {'value':>10} {'goal':>7}",
    ]
    for result in results:
        lines.append(f"{result['item']}: {result['what']}, {result['seconds']:.0f} s: {result['status']}")
        for one in result["goals"]:
            found = Found(one["figure"], one["value"], one["goal"])
            goal = "" if found.goal is None else shown(found.goal)
            words = verdict(found, judged(setting))
            lines.append(f"  {found.figure:60} {shown(found.value):>10} {goal:>7}  {words}".rstrip())
        lines += [f"  {step} is left out: {why}" for step, why in result["left_out"].items()]
        lines += [f"  {step} FAILED: {why}" for step, why in result["failures"].items()]
    return "\n".join(lines)


def check_all(check: Check, options: argparse.Namespace) -> int:
    """Prepare, run the items, write, print; the exit status."""
    started = time.monotonic()
    tiny = ["tiny" if options.tiny else "full"]
    data = [str(options.data.resolve())] if options.data else []
    status, words = check.run(
        [sys.executable, str(BENCH / "gpu" / "prepare.py"), str(check.work), *tiny, *data], max(check.left, LEAST)
    )
    if status != 0:
        last = words.splitlines()[-1] if words else "it said nothing"
        print(f"error: the check could not be prepared: {last.removeprefix('error: ')}", file=sys.stderr)
        return 2
    facts = json.loads((check.work / "facts.json").read_text())
    tiny = facts.pop("tiny")
    weights = check.work / "weights.safetensors" if tiny else weights_in(options.data)
    setting = Setting(check.work, facts, weights, tiny)
    out = options.out or (ROOT / "build" / "gpu-check" if tiny else BENCH / "results" / "gpu")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # now, and not after the first item
    except OSError as error:
        raise Unusable(f"--out {out} cannot be written: {error.strerror}") from None
    drawn = "drawn" if facts["drawn"] else f"from {len(tars_in(options.data))} tars"
    print(f"{facts['device']}; {'tiny' if tiny else 'full'} sizes; {facts['posters']} posters {drawn}, "
          f"{'' if weights else 'no '}weights; prepared in {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    results = []
    for item in ITEMS:
        if not options.items or item.name in options.items:
            results.append(run_item(check, item, setting))
            write(out / f"{item.name}.json", results[-1])
    rows = [{name: result[name] for name in ("item", "status", "seconds", "failures", "goals")} for result in results]
    write(out / "summary.json", {**facts, "tiny": tiny, "items": rows})
    print(table(results, setting))
    print(f"\nresults: {out}", flush=True)
    return int(any(result["failures"] for result in results))


def write(path: Path, value: dict[str, Any]) -> None:
    """JSON, for people too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises Unusable."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="pieces of gpu_pieces.py (default: drawn posters)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="pieces of gpu_wheels.py")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for the results (default: results/gpu beside this file)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all items together (default: %(default)s)")
    parser.add_argument("--items", metavar="A,B", help=f"only these of {', '.join(item.name for item in ITEMS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also on a GPU")
    options = parser.parse_args(arguments)
    for option in ("data", "wheels"):
        folder = getattr(options, option)
        if folder is not None and not folder.is_dir():
            raise Unusable(f"--{option} {folder} is not a folder")
    if not options.minutes > 0:
        raise Unusable(f"--minutes must be more than 0, not {options.minutes:g}")
    known = [item.name for item in ITEMS]
    options.items = [] if options.items is None else options.items.split(",")
    if unknown := [name for name in options.items if name not in known]:
        raise Unusable(f"--items: there is no {unknown[0]!r}; there are {', '.join(known)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the check."""
    try:
        options = parse(arguments)
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            work = Path(name).resolve()
            taken = unpack(options.wheels, work / "site")
            paths = [str(ROOT), str(work / "site"), os.environ.get("PYTHONPATH", "")]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
            print(f"Python {platform.python_version()}; from the wheels: {', '.join(taken) or 'nothing'}", flush=True)
            return check_all(Check(options, work, environment), options)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
