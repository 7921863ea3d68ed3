"""``posters``: one command tree. Bad input ends in one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import NoReturn

from shards.cli.clean import add_clean_parser
from shards.cli.clean_verify import add_referee_parser
from shards.cli.fetch import add_fetch_parser
from shards.cli.main import add_shards_parser
from shards.console import PrintableFormatter, Streams, standard_streams
from shards.errors import UserError, one_line, printable_line
from toolkit.cli.app import add_app_arguments
from toolkit.cli.audit import add_audit_arguments
from toolkit.cli.evaluate import add_evaluate_arguments, add_tune_arguments
from toolkit.cli.export import add_export_arguments, add_import_arguments, add_push_arguments
from toolkit.cli.predict import add_demo_arguments, add_predict_arguments
from toolkit.device.out_of_memory import memory_told

#: Seconds by which rank 0 may end before others that failed.
HEAD_START = 3.0
#: Commands that processes of a launch run together.
LAUNCHED = ("train", "tune", "evaluate", "predict")
#: Libraries whose INFO is about themselves.
NOISY = (
    "httpx", "httpx2", "huggingface_hub", "filelock", "timm", "PIL", "torch.distributed", "botocore", "aiobotocore",
    "s3transfer",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._with_hint(message)} (see `{self.prog} --help`)")

    def _with_hint(self, message: str) -> str:
        if not message.startswith("unrecognized arguments:"):
            return one_line(message)
        word = message.split(":", 1)[1].split()[0]
        name, known = word.split("=")[0], [o for a in self._all_actions() for o in a.option_strings]
        if name in known:
            return f"unknown argument {word}: other commands have it, this one has not"
        near = get_close_matches(name, known, n=1)
        return f"unknown argument {word}" + (f"; did you mean {near[0]}?" if near else "")

    def _all_actions(self) -> list[argparse.Action]:
        found = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [
                    a for p in action.choices.values() if isinstance(p, _Parser) for a in p._all_actions()
                ]
        return found


def build_parser() -> argparse.ArgumentParser:
    """The whole tree but ``train``, whose options come from the config's fields."""
    parser = _Parser(
        prog="posters", description="Clean, shard, train, evaluate, predict: multi-label image models."
    )
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="fetch|clean|referee|shards|train|tune|evaluate|predict|app|audit|export|push|import|demo",
    )
    add_fetch_parser(commands)
    add_clean_parser(commands)
    add_referee_parser(commands)
    add_shards_parser(commands)
    commands.add_parser("train", help="train on a shard set (options: posters train --help)", add_help=False)
    add_tune_arguments(
        commands.add_parser("tune", help="choose a model's thresholds and calibration again, on validation")
    )
    add_evaluate_arguments(commands.add_parser("evaluate", help="evaluate a model on a split of a shard set"))
    add_predict_arguments(commands.add_parser("predict", help="name the genres of images or of a shard set"))
    add_app_arguments(
        commands.add_parser("app", help="a page in the browser: drop posters, see genres and why")
    )
    add_audit_arguments(
        commands.add_parser("audit", help="how much does a model read? raw against cleaned posters")
    )
    add_export_arguments(commands.add_parser("export", help="a model as one ONNX or torch.export file"))
    add_push_arguments(commands.add_parser("push", help="upload a model folder to the hub"))
    add_import_arguments(commands.add_parser("import", help="a model folder from an earlier script's .pth"))
    add_demo_arguments(
        commands.add_parser("demo", help="the whole path on a small synthetic poster set, in minutes")
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit status. Raises UserError for bad input."""
    argv = list(argv)
    if argv[:1] == ["train"]:
        from toolkit.cli.train import parse_train

        command = parse_train(argv[1:])  # before torch is loaded, which takes seconds

        from shards.dataset.store import open_store
        from toolkit.training.run import train

        with memory_told(lambda: _no_room("train")):  # updates and forward passes say more about themselves
            return train(
                command.config,
                open_store(command.shards, command.cache),
                command.out,
                resume=command.resume,
                search_lr=command.find_lr,
            )
    args = build_parser().parse_args(argv)
    with memory_told(lambda: _memory_line(args)):
        return args.run(args)


def _memory_line(args: argparse.Namespace) -> str:
    """What to do when a command other than train needs more memory than there is."""
    if not hasattr(args, "batch_size"):
        return _no_room(args.command)
    from toolkit.device.defaults import best_device, no_room

    return no_room(args.batch_size, best_device(), "--batch-size")


def _no_room(command: str) -> str:
    return f"posters {command} needs more than there is; look at what else runs here, or use a larger machine"


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script and of launch/*.py: errors become one line, then the process exits."""
    with standard_streams() as streams:
        set_up_logging()
        threading.excepthook = _thread_failed
        _run(sys.argv[1:] if argv is None else argv, streams)


def _run(argv: Sequence[str], streams: Streams) -> NoReturn:
    try:
        status = _status(argv)
        if problem := streams.problem():
            raise UserError(problem)
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
        from toolkit.distributed.launch import farewell  # torch, which only a launch needs for that

        farewell(error)


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
