"""How long the processes of a launch take to compare what they are about to do, before anything else.

    python tests/bench/agreement.py [--processes 2] [--rounds 50]

Real processes over loopback, as a launch of a training with a model of 28 genres has them. Prints a line of JSON:
facts and bytes of a record, and the median in milliseconds of writing it down and of comparing it, on the slowest
process. Reading files is not in it (a model's weights are hashed where they are loaded).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from toolkit.config.schema import Config
from toolkit.distributed.agreement import Facts, command_facts, config_facts, record_of

GENRES = 28


def facts() -> Facts:
    """As many as commands have."""
    found = command_facts("train", {"resume": True, "find_lr": False}) | config_facts(Config())
    for number in range(GENRES):
        found[f"model threshold of genre {number}"] = (str(0.25 + number / 100), "runs/first/model")
        found[f"model calibration of genre {number}"] = ("[1.0, 0.0]", "runs/first/model")
    return found


def compare_often(rank: int, processes: int, port: int, rounds: int, results: Any) -> None:
    """Be one process of a launch."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from toolkit.distributed.launch import compare, open_store

    store = open_store(processes, timedelta(seconds=60))
    written, compared, size = [], [], 0
    for _ in range(rounds):
        begin = time.perf_counter()
        record = record_of(facts(), os.environ)
        middle = time.perf_counter()
        if verdict := compare(store, rank, processes, record):
            raise SystemExit(verdict)
        written.append(1000 * (middle - begin))
        compared.append(1000 * (time.perf_counter() - middle))
        size = len(msgspec.json.encode(record))
    results.put((statistics.median(written), statistics.median(compared), len(record.facts), size))
    time.sleep(1)  # the first process serves the store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "toolkit"))
    from toolkit_helpers import free_port

    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    ranks = [
        context.Process(target=compare_often, args=(rank, args.processes, port, args.rounds, results))
        for rank in range(args.processes)
    ]
    for process in ranks:
        process.start()
    found = [results.get(timeout=300) for _ in ranks]
    for process in ranks:
        process.join()
    said = {
        "processes": args.processes,
        "facts": found[0][2],
        "bytes": found[0][3],
        "record_ms": round(max(one[0] for one in found), 2),
        "compare_ms": round(max(one[1] for one in found), 2),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
