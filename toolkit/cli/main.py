"""``posters``: one command tree. Bad input ends in one line on stderr and exit status 2."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from shards.console import Output, PrintableFormatter, standard_streams
from shards.errors import UserError, one_line, printable_line
from toolkit.cli.commands import COMMANDS, read
from toolkit.device.out_of_memory import explain_out_of_memory

#: Seconds by which rank 0 may end before others that failed.
HEAD_START = 3.0
#: Commands that processes of a launch run together.
LAUNCHED = ("train", "tune", "evaluate", "predict")
#: Libraries whose INFO is about themselves.
NOISY = (
    "httpx", "httpx2", "huggingface_hub", "filelock", "timm", "PIL", "torch.distributed", "botocore", "aiobotocore",
    "s3transfer",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit status. Raises UserError for bad input."""
    name, options = read(argv)  # before torch is loaded, which takes seconds
    with explain_out_of_memory(lambda: _memory_line(name, options)):
        return COMMANDS[name](options)


def _memory_line(command: str, options: Any) -> str:
    """What to do when a command needs more memory than there is."""
    if not hasattr(options, "batch_size"):  # updates and forward passes of a training say more about themselves
        return f"posters {command} needs more than there is; look at what else runs here, or use a larger machine"
    from toolkit.device.defaults import best_device, no_room

    return no_room(options.batch_size, best_device(), "--batch-size")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script and of launch/*.py: errors become one line, then the process exits."""
    with standard_streams() as streams:
        set_up_logging()
        threading.excepthook = _thread_failed
        _run(sys.argv[1:] if argv is None else argv, streams)


def _run(argv: Sequence[str], streams: Output) -> NoReturn:
    try:
        status = _status(argv)
        if problem := streams.problem():
            raise UserError("path-unwritable", problem)
    except UserError as error:
        _fail(str(error), error.status, partial(_farewell, argv, error))
    except OSError as error:  # full disk, no permission, broken device: the system's word is the whole story
        _fail(one_line(error), 2, partial(_farewell, argv, error))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        lost = _lost_peer(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            _farewell(argv, error)
            raise
        _fail(str(lost), lost.status)
    sys.exit(status)


def _status(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as ended:
        if ended.code:
            raise
        return 0  # --help was printed


def _lost_peer(error: RuntimeError) -> UserError | None:
    """What to say if it is the failure of a collective; only a command that loaded torch can have met one."""
    if "toolkit.distributed.launch" not in sys.modules:
        return None
    from toolkit.distributed.launch import lost_peer

    return lost_peer(error)


def _rank() -> int:
    """This process's number in its launch; 0 if the environment has none (launch.py says what is wrong with it)."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isdecimal() else 0


def _fail(message: str, status: int, farewell: Callable[[], None] = lambda: None) -> NoReturn:
    """Say why and exit; ``farewell`` tells the other processes of a launch."""
    rank = _rank()
    if rank:
        farewell()
        # The ranks of a launch mostly fail alike. Rank 0 speaks first, and the launcher then ends the others.
        time.sleep(HEAD_START)
        message = f"[rank {rank}] {message}"
    print(f"error: {printable_line(message)}", file=sys.stderr, flush=True)
    if not rank:
        farewell()
    if "toolkit.distributed.launch" in sys.modules:
        from toolkit.distributed.launch import leave

        leave()
    sys.exit(status)


def _farewell(argv: Sequence[str], error: Exception) -> None:
    """Let the other processes of a launch of this command know of an error, if they would wait for this one."""
    if argv and argv[0] in LAUNCHED and os.environ.get("WORLD_SIZE", "1") != "1":
        from toolkit.distributed.launch import report_failure  # torch, which only a launch needs for that

        report_failure(error)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """A traceback, as usual, but for TensorBoard's thread: what it met is raised again with the next row."""
    if type(args.thread).__name__ != "_AsyncWriterThread" or not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def set_up_logging() -> None:
    """Messages as they are on stderr; other ranks than 0 only warn, and say who they are."""
    rank = _rank()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter(f"[rank {rank}] %(message)s" if rank else "%(message)s"))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
