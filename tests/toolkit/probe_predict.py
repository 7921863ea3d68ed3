"""``posters predict`` that is killed, or slow, or tells its memory.

python probe_predict.py die RANK FILES <options>     SIGKILL in the middle of writing file number FILES of that rank
python probe_predict.py slow RANK SECONDS <options>  that rank sleeps before each batch; each rank says its files
python probe_predict.py memory 0 0 <options>         prints the peak of resident memory in KiB
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import toolkit.predict_batch
from toolkit.cli import main


def die_in_file(number: int) -> None:
    write, files = pq.write_table, 0

    def some_bytes_then_nothing(table: Any, stream: Any, **options: Any) -> None:
        nonlocal files
        files += 1
        if files == number:
            stream.write(b"PAR1")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(table, stream, **options)

    pq.write_table = some_bytes_then_nothing


def sleep_before_batches(seconds: float) -> None:
    score = toolkit.predict_batch.score

    def slowly(*arguments: Any) -> Any:
        for scored in score(*arguments):
            time.sleep(seconds)
            yield scored

    toolkit.predict_batch.score = slowly  # type: ignore[assignment]


def say_files() -> None:
    write = toolkit.predict_batch.write_rows

    def told(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        sys.stdout.write(f"rank {os.environ.get('RANK', '0')} wrote {path.name}\n")

    toolkit.predict_batch.write_rows = told  # type: ignore[assignment]


def run() -> int:
    what, rank, number = sys.argv[1:4]
    if what == "slow":
        say_files()
    if rank == os.environ.get("RANK", "0"):
        if what == "die":
            die_in_file(int(number))
        elif what == "slow":
            sleep_before_batches(float(number))
    status = main(["predict", *sys.argv[4:]])
    if what == "memory":
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return status


if __name__ == "__main__":
    sys.exit(run())
