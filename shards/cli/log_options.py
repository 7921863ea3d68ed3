"""Options of every command about its log on standard error: ``--log`` and ``--debug``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from shards.errors import UserError, did_you_mean
from shards.log_lines import Form, LineHandler
from shards.progress import show_progress

#: Libraries of which users see only warnings and errors.
NOISY = (
    "httpx", "httpx2", "huggingface_hub", "filelock", "timm", "PIL", "torch.distributed", "botocore", "aiobotocore",
    "s3transfer", "mlflow", "alembic",
)  # fmt: skip


@dataclass(frozen=True)
class LogOptions:
    """Options of every command. They may stand anywhere on the command line."""

    log: Form = "text"
    """Form of the messages on standard error. text: lines of text. json: one JSON object per line. quiet: only
    warnings, errors and the last lines of a training."""
    debug: bool = False
    """Begin each message with time, level and rank, print messages of all ranks, and print tracebacks of errors."""


def split_options(words: Sequence[str]) -> tuple[LogOptions, list[str]]:
    """Return the log options of a command line, and its other words. Raises UserError for an unknown form.

    >>> split_options(["train", "--log=json", "--debug", "--out", "RUN"])
    (LogOptions(log='json', debug=True), ['train', '--out', 'RUN'])
    """
    forms, form, debug, rest = get_args(Form), "text", False, list[str]()
    left = iter(words)
    for word in left:
        if word == "--":
            rest += [word, *left]
        elif word == "--debug":
            debug = True
        elif word == "--log" or word.startswith("--log="):
            form = next(left, "") if word == "--log" else word.partition("=")[2]
            if form not in forms:
                hint = did_you_mean(form, forms)
                raise UserError(
                    "option-value", f"--log must be {', '.join(forms[:-1])} or {forms[-1]}, not {form!r}{hint}"
                )
        else:
            rest.append(word)
    return LogOptions(form, debug), rest  # type: ignore[arg-type]


def rank() -> int:
    """Return the rank of this process, or 0 if RANK is missing or invalid. launch.py reports an invalid RANK."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isdecimal() else 0


def set_up_logging(options: LogOptions | None = None) -> None:
    """Log to stderr. Ranks above 0 log only warnings and errors, except with --debug."""
    options = options or LogOptions()
    own = rank()
    handler = LineHandler(options.log, own, options.debug)
    level = logging.WARNING if own and not options.debug else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for ours in ("shards", "toolkit"):
        logging.getLogger(ours).setLevel(logging.DEBUG if options.debug else logging.NOTSET)
    show_progress(options.log == "text")
    logging.captureWarnings(options.log == "json")
    if options.log == "json":
        sys.excepthook = _log_bug


def _log_bug(*error: object) -> None:
    """Log an exception that no code has handled. The traceback is in the JSON object."""
    logging.getLogger("posters").critical("%s", error[1], exc_info=error)  # type: ignore[arg-type]
