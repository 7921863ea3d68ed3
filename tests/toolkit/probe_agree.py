"""One rank of several launches in a row, each of a command that is to end before the processes form a group.

    python probe_agree.py CASES.json

CASES.json: a list of {"port", "argv": by rank, "env": by rank, "versions": by rank, what its libraries are to be taken
for}. Prints a line of JSON with the status, stderr and seconds of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import toolkit.cli.run_evaluate
import toolkit.distributed.agreement
import toolkit.evaluation.tune
import toolkit.prediction.batch
import toolkit.training.run
from toolkit.cli import main as cli


def main() -> None:
    rank = int(os.environ["RANK"])
    cli.PRINT_DELAY = 0.0  # no launcher waits to end the others
    environment, versions = dict(os.environ), toolkit.distributed.agreement.versions
    facts = toolkit.cli.run_evaluate.command_facts

    def buggy(command: str, options: Any) -> Any:
        return facts(command, options) if options.split != "BUG" else 1 / 0

    toolkit.cli.run_evaluate.command_facts = buggy
    for case in json.loads(Path(sys.argv[1]).read_text()):
        os.environ.clear()
        os.environ.update(environment | case["env"][rank], MASTER_PORT=str(case["port"]))
        other = case["versions"][rank]
        toolkit.distributed.agreement.versions = lambda other=other: versions() | other  # type: ignore[misc]
        said, began, status = io.StringIO(), time.monotonic(), None
        with contextlib.redirect_stderr(said):
            try:
                cli.run(case["argv"][rank])
            except SystemExit as end:
                status = end.code
            except ZeroDivisionError as bug:
                status = type(bug).__name__
        saw = {"status": status, "said": said.getvalue(), "seconds": time.monotonic() - began}
        # One write: both ranks share the file.
        os.write(1, f"SAW {rank} {json.dumps(saw)}\n".encode())


if __name__ == "__main__":
    main()
