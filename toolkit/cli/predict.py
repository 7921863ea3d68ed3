"""Options of ``posters predict`` and ``demo``. What runs is loaded when it runs: `posters --help` needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.cli.arguments import add_cache_options
from toolkit.prediction.formats import CHOICES


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
        choices=CHOICES,
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
    from toolkit.prediction.files import run_predict

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
    from toolkit.cli.demo import run_demo

    return run_demo(args.out, args.posters, args.seed)
