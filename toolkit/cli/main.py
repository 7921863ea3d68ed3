"""Entry point of the ``posters`` command. Bad input prints one line on stderr and gives exit status 2."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from shards.cli.log_options import LogOptions, rank, set_up_logging, split_options
from shards.console import Output, standard_streams
from shards.errors import UserError, one_line
from shards.log_lines import print_error
from toolkit.cli.commands import COMMANDS, read
from toolkit.device.out_of_memory import explain_out_of_memory

#: Seconds that a failed rank above 0 waits before it prints its error, so that rank 0 can print first.
PRINT_DELAY = 3.0
#: Commands that a launcher can start in several processes.
LAUNCHED = ("train", "tune", "evaluate", "predict")


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status. Raises UserError for bad input."""
    name, options = read(argv)  # reports bad options before torch is imported, which takes seconds
    with explain_out_of_memory(lambda: memory_line(name, options)):
        return COMMANDS[name](options)


def memory_line(command: str, options: Any) -> str:
    """Return the text for a command that runs out of memory: what does not fit, and the remedy."""
    if not hasattr(options, "batch_size"):  # commands without --batch-size; training has its own messages
        return f"posters {command} needs more memory than is available; end other programs, or use a larger machine"
    from toolkit.device.defaults import best_device, no_room

    return no_room(options.batch_size, best_device(), "--batch-size")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command, print an error as one line, and exit. The console script and launch/*.py call this function."""
    with standard_streams() as streams:
        set_up_logging()
        threading.excepthook = _thread_failed
        _run(sys.argv[1:] if argv is None else argv, streams)


def _run(argv: Sequence[str], streams: Output) -> NoReturn:
    try:
        options, argv = split_options(argv)
        if options != LogOptions():
            set_up_logging(options)
        status = _status(argv)
        if problem := streams.problem():
            raise UserError("path-unwritable", problem)
    except UserError as error:
        _fail(str(error), error.status, partial(_report_to_ranks, argv, error), error.code)
    except OSError as error:  # for example a full disk; the message of the operating system is clear
        _fail(one_line(error), 2, partial(_report_to_ranks, argv, error))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        lost = _lost_peer(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            _report_to_ranks(argv, error)
            raise
        _fail(str(lost), lost.status, code=lost.code)
    sys.exit(status)


def _status(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as ended:
        if ended.code:
            raise
        return 0  # --help was printed


def _lost_peer(error: RuntimeError) -> UserError | None:
    """Return a UserError if a collective operation failed because another process is lost. Else return None."""
    if "toolkit.distributed.launch" not in sys.modules:  # no collective operation has run
        return None
    from toolkit.distributed.launch import lost_peer

    return lost_peer(error)


def _fail(message: str, status: int, report: Callable[[], None] = lambda: None, code: str | None = None) -> NoReturn:
    """Print the error and exit. ``report`` sends the error to the other processes of a launch."""
    own = rank()
    if own:
        report()
        # Usually all ranks fail with the same error. Rank 0 prints it first, and the launcher then ends the others.
        time.sleep(PRINT_DELAY)
    print_error(f"[rank {own}] {message}" if own else message, {"code": code, "status": status}, trace=status != 130)
    if not own:
        report()
    if "toolkit.distributed.launch" in sys.modules:
        from toolkit.distributed.launch import leave

        leave()
    sys.exit(status)


def _report_to_ranks(argv: Sequence[str], error: Exception) -> None:
    """Send an error to the other processes of a launch, so that they do not wait for this process."""
    if argv and argv[0] in LAUNCHED and os.environ.get("WORLD_SIZE", "1") != "1":
        from toolkit.distributed.launch import report_failure  # imports torch, which is slow

        report_failure(error)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Print the traceback of a failed thread. Skip an OSError of TensorBoard, because it is raised again later."""
    if type(args.thread).__name__ != "_AsyncWriterThread" or not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)
