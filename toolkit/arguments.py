"""Options of ``posters evaluate``, ``tune``, ``predict`` and ``demo``.

Their work is imported when asked for: torch is slow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args, get_type_hints

from shards.arguments import add_cache_options, add_shards
from toolkit.config import DecideConfig


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
    from toolkit.evaluate import run_evaluate

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
    from toolkit.tune import run_tune

    return run_tune(args)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters predict``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-i", "--image", type=Path, nargs="+", help="one or more image files")
    what.add_argument("-d", "--directory", type=Path, help="folder of images, with its subfolders")
    what.add_argument(
        "--shards",
        help="shard set (a folder or URL), or folder of images; a file per shard goes to the folder --out",
    )
    add_cache_options(parser)
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    parser.add_argument(
        "-t",
        "--threshold",
        type=float,
        help="calibrated probability from which a genre is named (default: the model's own per genre)",
    )
    parser.add_argument(
        "-o",
        "--output",
        "--out",
        type=Path,
        help="folder for the results, a file per shard or per 512 images; or one file for the results of images, by "
        "its ending: .json, .csv, .jsonl, .parquet, .txt",
    )
    parser.add_argument(
        "-f",
        "--format",
        choices=("parquet", "csv", "jsonl", "json"),
        help="of a folder's files: parquet (default), csv, jsonl; of one file: by its ending (default), or one of "
        "these; on the screen: json, csv (default: text)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="probability of every genre, sorted")
    parser.add_argument("--split", help="with --shards: only this split")
    parser.add_argument(
        "--ignore-labels", action="store_true", help="with --shards: predict though its labels differ"
    )
    parser.add_argument(
        "--tta",
        choices=("none", "flip"),
        default="none",
        help="flip: the mean over each image and its mirror image, for twice the time (default none)",
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="also the pooled features that the classifier is given, for search and de-duplication (folders)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="images per forward pass (default: 32 on a CPU, 128 on a GPU)",
    )
    parser.add_argument("--workers", type=int, default=0, help="decoding threads (0: automatic)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default=None, help="mixed precision")
    parser.add_argument(
        "--onnx",
        nargs="?",
        const="",
        metavar="FILE",
        help="run what `posters export` made instead of PyTorch (default MODEL/model.onnx)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: faster after a first minute, for many images"
    )
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory layout that convolutions like best (default: on)",
    )
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from toolkit.predict import run_predict

    return run_predict(args)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters demo``."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for all it makes (default ./demo)"
    )
    parser.add_argument("--posters", type=int, default=600, help="posters to draw (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of drawing and training (default 0)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from toolkit.demo import run_demo

    return run_demo(args.out, args.posters, args.seed)
