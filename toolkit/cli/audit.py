"""Options of ``posters audit``; its work is imported when asked for (torch is slow)."""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.cli.arguments import add_columns


def add_audit_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters audit``."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    parser.add_argument("--images", type=Path, required=True, help="folder of the posters before cleaning")
    parser.add_argument(
        "--cleaned", type=Path, required=True, help="folder made of them by `posters clean` (with its report)"
    )
    parser.add_argument(
        "--metadata", type=Path, help="CSV with the genres: audit only its posters, with metrics"
    )
    add_columns(parser)
    parser.add_argument("--limit", type=int, help="audit a sample of this many posters, drawn by the seed")
    parser.add_argument(
        "--controls", type=int, default=4, help="random places per poster to compare with (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of places, sample and interval (default 0)")
    parser.add_argument(
        "--fill-model",
        type=Path,
        help="the ONNX network that cleaned the posters, to paint the controls with",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default 64)")
    parser.add_argument("--workers", type=int, default=0, help="painting threads (0: automatic)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default=None, help="mixed precision")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("audit"), help="folder for the report (default ./audit)"
    )
    parser.set_defaults(run=_audit)


def _audit(args: argparse.Namespace) -> int:
    from toolkit.cli.run_audit import run_audit

    return run_audit(args)
