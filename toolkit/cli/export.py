"""Options of ``posters export``, ``push`` and ``import``. Their work is imported when asked for: torch is slow."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.export.formats import CHOICES


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters export``."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    parser.add_argument("-f", "--format", choices=CHOICES, default=CHOICES[0], help="default %(default)s")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="file (default MODEL/model.onnx, MODEL/model-preprocess.onnx or MODEL/model.pt2)",
    )
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="onnx: resize, crop and normalise within the file, which then takes decoded RGB images of any size",
    )
    parser.add_argument("--opset", type=int, help="onnx: version of the operators (default 18)")
    parser.add_argument(
        "--check",
        type=Path,
        nargs="+",
        metavar="DIR_or_FILE",
        help="images to compare the file with PyTorch on, at most 64 of them (default: drawn posters)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference: of logits, probabilities and embedding (default 0.001), or with --preprocess of "
        "probabilities (default 0.05)",
    )
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from toolkit.export.run import run_export

    return run_export(args)


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters push``."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository on the hub")
    parser.add_argument("--private", action="store_true", help="make it private if it is new")
    parser.add_argument("--revision", metavar="R", help="branch (default: the main one)")
    parser.add_argument("--message", metavar="M", help="of the commit")
    parser.add_argument(
        "--with-predictions",
        action="store_true",
        help="also predictions-*.npz: logits and labels of the samples that were evaluated",
    )
    parser.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    from toolkit.export.hub import run_push

    return run_push(args)


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters import``."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE.pth", help="of the earlier training script"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="model folder to make; absent or empty")
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    from toolkit.export.legacy_checkpoint import run_import

    return run_import(args)
