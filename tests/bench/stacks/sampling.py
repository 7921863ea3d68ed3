"""Where the time of a prediction goes: the stacks of all threads, looked at a thousand times a second.

A part is the innermost function of ours in a stack, and the library that this function called; "idle" is a stack
without code of ours. The share of a part is its share of the samples, so the shares of a thread add up to 1. The
sampler needs Python's lock for each look, so it sees a thread that waits or computes outside of the lock a little too
often.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.data.loader.timing import LoaderTimer

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 0.001
#: Smaller parts are added up.
LEAST = 0.005
IDLE = "idle"


class Sampler:
    """Looks at all threads while its context is open, and adds up what each LoaderTimer is told."""

    def __init__(self) -> None:
        self._parts: dict[str, Counter[str]] = defaultdict(Counter)
        self._times: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._add = add = LoaderTimer.add

        def told(timer: LoaderTimer, **values: float) -> None:
            self._times.update(values)
            add(timer, **values)

        LoaderTimer.add = told  # type: ignore[method-assign, assignment]
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started
        LoaderTimer.add = self._add  # type: ignore[method-assign]

    def _look(self) -> None:
        while not self._stop.wait(SECONDS):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for number, frame in sys._current_frames().items():
                name = names.get(number, "")
                if name and name != "sampler":
                    self._parts[name.rstrip("0123456789-_ ()")][part_of(frame)] += 1

    def shares(self) -> dict[str, Any]:
        """Seconds, the loader's times as shares of them, and thread → part → share of that thread's samples."""
        threads = {}
        working = {name: parts for name, parts in self._parts.items() if parts.keys() != {IDLE}}
        for name, parts in sorted(working.items(), key=lambda item: -item[1].total()):
            shares = {part: count / parts.total() for part, count in parts.most_common()}
            found = {part: round(share, 4) for part, share in shares.items() if share >= LEAST}
            rest = sum(share for share in shares.values() if share < LEAST)
            threads[name] = {**found, **({"all others": round(rest, 4)} if rest else {})}
        loader = {name: round(self._times[name] / self.seconds, 4) for name in ("waited", "copied", "decode_cpu")}
        samples = {name: parts.total() for name, parts in working.items()}
        return {"seconds": round(self.seconds, 3), "loader": loader, "threads": threads, "samples": samples}


@functools.cache
def module_of(file: str) -> str:
    """The name of a module of ours, or nothing."""
    path = Path(file)
    if path.is_relative_to(ROOT / "toolkit") or path.is_relative_to(ROOT / "shards"):
        return ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return ""


def part_of(frame: FrameType) -> str:
    """``toolkit.inference.forward:__call__ → torch``; IDLE for a thread that runs no code of ours."""
    library, here = "", frame
    while True:
        if module := module_of(here.f_code.co_filename):
            return f"{module}:{here.f_code.co_name}" + (f" → {library}" if library else "")
        if not library:
            library = str(here.f_globals.get("__name__", "?")).partition(".")[0]
        if here.f_back is None:
            return IDLE
        here = here.f_back
