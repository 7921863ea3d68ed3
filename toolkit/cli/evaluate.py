"""Options of ``posters evaluate`` and ``tune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args, get_type_hints

from shards.cli.arguments import add_shards
from toolkit.config.schema import DecideConfig


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters evaluate``."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    add_shards(parser, "shard set made by `posters shards build`")
    parser.add_argument("--split", default="test", help="split to evaluate (default test)")
    parser.add_argument(
        "--thresholds",
        default="0.3,0.5,0.7",
        help="thresholds to show beside the model's own, which are always those of validation (see posters tune)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="samples per forward pass (default: 32 on a CPU, 128 on a GPU)",
    )
    parser.add_argument("--workers", type=int, default=0, help="decoding threads per process (0: automatic)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default=None, help="mixed precision")
    parser.add_argument("-o", "--out", type=Path, help="JSON file (default MODEL/metrics-SPLIT.json)")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="also write a page with plots and posters: DIR/index.html"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RUN2",
        help="in the report, another run's folder: is the difference real?",
    )
    parser.add_argument(
        "--label-errors",
        action=argparse.BooleanOptionalAction,
        help="in the report, list likely label errors (default: where cleanlab is installed)",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from toolkit.cli.run_evaluate import run_evaluate

    return run_evaluate(args)


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters tune``."""
    default = DecideConfig()
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    add_shards(parser, "shard set of the training; its val split is used")
    parser.add_argument(
        "--aim", default=default.aim, help="f1, f0.5, precision>=X or recall>=X, on val (default %(default)s)"
    )
    parser.add_argument(
        "--thresholds",
        choices=get_args(get_type_hints(DecideConfig)["thresholds"]),
        default=default.thresholds,
        help="one for all genres (global) or one per genre (genre); auto takes one per genre where it helps clearly on "
        "held-out parts of val (default %(default)s)",
    )
    parser.add_argument(
        "--calibration",
        choices=get_args(get_type_hints(DecideConfig)["calibration"]),
        default=default.calibration,
        help="auto takes what helps clearly on held-out parts of val, if any (default %(default)s)",
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=default.slack,
        help="f1 and f0.5, per genre: share of micro-F that may be spent on macro-F (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="samples per forward pass (default: 32 on a CPU, 128 on a GPU)",
    )
    parser.add_argument("--workers", type=int, default=0, help="decoding threads per process (0: automatic)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default=None, help="mixed precision")
    parser.set_defaults(run=_tune)


def _tune(args: argparse.Namespace) -> int:
    from toolkit.evaluation.tune import run_tune

    return run_tune(args)
