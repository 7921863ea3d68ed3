"""``posters predict`` that is killed, or slow, or tells its memory.

python probe_predict.py die FILES <options>      SIGKILL in the middle of a file once so many are there
python probe_predict.py slow SECONDS <options>   rank 1 sleeps before each batch; each rank says its files
python probe_predict.py memory 0 <options>       prints the peak of resident memory in KiB
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

import toolkit.prediction.batch
from toolkit.cli.main import main


def die_after(number: int) -> None:
    write = pq.write_table

    def some_bytes_then_nothing(table: Any, stream: Any, **options: Any) -> None:
        if len(list(Path(stream.name).parent.glob("*.parquet"))) >= number:
            stream.write(b"PAR1")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(table, stream, **options)

    pq.write_table = some_bytes_then_nothing


def sleep_before_batches(seconds: float) -> None:
    score = toolkit.prediction.batch.score

    def slowly(*arguments: Any, **options: Any) -> Any:
        for scored in score(*arguments, **options):
            time.sleep(seconds)
            yield scored

    toolkit.prediction.batch.score = slowly


def say_files() -> None:
    write = toolkit.prediction.batch.write_rows

    def told(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        sys.stdout.write(f"rank {os.environ.get('RANK', '0')} wrote {path.name}\n")

    toolkit.prediction.batch.write_rows = told  # type: ignore[assignment]


def run() -> int:
    what, number = sys.argv[1:3]
    if what == "die":
        die_after(int(number))
    elif what == "slow":
        say_files()
        if os.environ.get("RANK") == "1":
            sleep_before_batches(float(number))
    status = main(["predict", *sys.argv[3:]])
    if what == "memory":
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return status


if __name__ == "__main__":
    sys.exit(run())
