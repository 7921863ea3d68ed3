"""How large the page of a report is, how long it takes to make, and how soon a browser shows it.

    python tests/bench/report_page.py [--posters 10000] [--genres 30] [--rounds 3] [--json FILE]

The logits are random numbers that know something of the genres, and the posters are drawn. So no network is run, and
what is measured is the work of the report alone. A page is ready when the browser has loaded it and has painted it
for the first time. The exit status is 1 if the page has 6 MB or more, if it takes a minute or more to make, or if it
is ready after 2 s or more. Needs chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("", "tests/toolkit", "tests/bench"))

from browser_tools import LACKING, Window, started
from loader import machine
from report_tools import CONFIG, PREPROCESSING

from shards.dataset.labels import LabelSet
from shards.inputs.synthetic import draw_poster
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import ModelFolder
from toolkit.report.build import build_report
from toolkit.report.inputs import ModelOutputs, ReportInputs
from toolkit.report.label_errors import have_cleanlab
from toolkit.report.output import write_report

FIGURES = {
    "page_mb": "page, MB",
    "make_seconds": "seconds to make it",
    "make_cpu_seconds": "CPU seconds to make it",
    "ready_seconds": "seconds until a browser shows it",
}
#: Each of these figures has to be below its limit.
LIMITS = {"page_mb": 6.0, "make_seconds": 60.0, "ready_seconds": 2.0}
#: So many different posters are drawn.
DRAWN = 20
#: Share of the most common genre, and of the rarest.
COMMON, RARE = 0.5, 0.003

READY = """
const done = arguments[0];
new PerformanceObserver((list, observer) => {
  const [paint] = list.getEntriesByName("first-contentful-paint");
  if (!paint) return;
  observer.disconnect();
  const [page] = performance.getEntriesByType("navigation");
  done(Math.max(paint.startTime, page.loadEventEnd) / 1000);
}).observe({ type: "paint", buffered: true });
"""


def drawn(number: int) -> bytes:
    """A JPEG of 400 x 600 pixels."""
    out = io.BytesIO()
    draw_poster(0, number, shrink=2)[0].save(out, "JPEG", quality=90)
    return out.getvalue()


def inputs(posters: int, genres: int) -> ReportInputs:
    """A model that is calibrated and has a threshold per genre, and a set with some near-duplicates."""
    rng = np.random.default_rng(0)
    prevalence = np.geomspace(COMMON, RARE, genres)
    targets = rng.random((posters, genres)) < prevalence
    logits = 2 * (rng.normal(size=targets.shape) + targets - 0.5) + np.log(prevalence / (1 - prevalence))
    decisions = Decisions(
        np.linspace(0.5, 0.15, genres), np.full(genres, 0.6), np.zeros(genres), 0.4, calibration="temperature"
    )
    names = [f"Genre {number}" for number in range(1, genres + 1)]
    folder = ModelFolder(nn.Module(), LabelSet(tuple(names)), decisions, PREPROCESSING, CONFIG, Path("run/model"))
    copies = np.where(rng.random(posters) < 0.02, rng.integers(0, posters, posters), np.arange(posters))
    pictures = [drawn(number) for number in range(min(DRAWN, posters))]
    return ReportInputs(
        "test",
        names,
        targets,
        [f"tt{number:07d}" for number in range(posters)],
        lambda number: pictures[number % len(pictures)],
        prevalence,
        ModelOutputs("run", folder, logits),
        None,
        {"shard set": "shards", "shard set fingerprint": "0123456789abcdef", "labels fingerprint": "0"},
        "posters evaluate --model run --shards shards --report report",
        np.unique(copies, return_inverse=True)[1],
    )


def measure(given: ReportInputs, rounds: int, work: Path) -> dict[str, Any]:
    """Medians of all figures, and the figures of each round."""
    made, computed, ready, size = [], [], [], 0.0
    with started(work / "profile") as driver:
        for turn in range(rounds):
            begin, before = time.perf_counter(), time.process_time()
            # What is computed once for the arrays of an object is computed in each round.
            report = build_report(replace(given), label_errors=have_cleanlab())
            page = write_report(work / f"report-{turn}", report)
            made.append(time.perf_counter() - begin)
            computed.append(time.process_time() - before)
            size = page.stat().st_size / 1e6
            Window(driver).open(page)
            ready.append(driver.execute_async_script(READY))
            print(f"round {turn + 1} of {rounds}: {made[-1]:.1f} s", file=sys.stderr)
    seconds = {"make_seconds": made, "make_cpu_seconds": computed, "ready_seconds": ready}
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    rounds_of = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    return {"page_mb": round(size, 2), **medians, "rounds": rounds_of}


def missed(found: dict[str, Any]) -> list[str]:
    """Names of the figures that are not below their limits."""
    return [name for name, limit in LIMITS.items() if found[name] >= limit]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posters", type=int, default=10_000)
    parser.add_argument("--genres", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    options = parser.parse_args(arguments)
    if options.posters < 20 or min(options.genres, options.rounds) < 1:
        print("error: --posters must be at least 20, --genres and --rounds at least 1", file=sys.stderr)
        return 2
    if LACKING:
        print(f"error: a browser is needed to measure when the page is ready: {LACKING}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        found = measure(inputs(options.posters, options.genres), options.rounds, Path(work))
    print(f"A report of {options.genres} genres and {options.posters:,} posters, medians of {options.rounds} rounds\n")
    print("| figure | measured | limit |\n| --- | --- | --- |")
    for name, words in FIGURES.items():
        print(f"| {words} | {found[name]:g} | {LIMITS.get(name, '')} |")
    if options.json:
        about = {"benchmark": "report_page", "machine": machine(), "load_average": os.getloadavg()[1]}
        about |= {"posters": options.posters, "genres": options.genres, "limits": LIMITS}
        options.json.write_text(json.dumps(about | found, indent=2) + "\n")
    for name in missed(found):
        print(f"not below the limit: {FIGURES[name]}", file=sys.stderr)
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
