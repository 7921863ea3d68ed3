"""Options of text removal, shared by the commands that have it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.errors import UserError
from shards.text.detector import DetectorOptions
from shards.text.inpaint import FILLS
from shards.text.masks import MaskOptions
from shards.text.pipeline import TextRemoval


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """How text is found and painted over."""
    group = parser.add_argument_group("text removal")
    group.add_argument(
        "--detector",
        default=DetectorOptions.detector,
        help="rapidocr (default), FILE.onnx of a detector of its kind, or package.module:make",
    )
    group.add_argument(
        "--looks",
        default=show_looks(DetectorOptions.looks),
        help="short sides of the searched copies, of each look in turn (default %(default)s)",
    )
    group.add_argument("--pixel-threshold", type=float, default=DetectorOptions.pixel_threshold)
    group.add_argument("--region-threshold", type=float, default=DetectorOptions.region_threshold)
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs onnxruntime-gpu")
    group.add_argument(
        "--margin", type=float, default=MaskOptions.margin, help="growth of a mask, in heights of its letters"
    )
    group.add_argument(
        "--max-region",
        type=float,
        default=MaskOptions.max_region,
        help="largest share of the picture for a region",
    )
    group.add_argument(
        "--max-total",
        type=float,
        default=MaskOptions.max_total,
        help="largest share of the picture for all regions",
    )
    group.add_argument("--fill", choices=FILLS, default="surround", help="how to paint (default surround)")
    group.add_argument(
        "--fill-model", type=Path, help="ONNX in-painting network instead: image and mask in, image out"
    )
    group.add_argument("--passes", type=int, default=TextRemoval.passes, help="paintings a poster, at most")


def text_options(args: argparse.Namespace) -> TextRemoval:
    """What ``add_text_options`` was told. Raises UserError."""
    return TextRemoval(
        DetectorOptions(
            args.detector, parse_looks(args.looks), args.pixel_threshold, args.region_threshold, args.device
        ),
        MaskOptions(args.margin, args.max_region, args.max_total),
        args.fill,
        args.fill_model,
        args.passes,
    )


def parse_looks(text: str) -> tuple[tuple[int, ...], ...]:
    """``256,608/416,1024`` → ((256, 608), (416, 1024)). Raises UserError."""
    try:
        return tuple(tuple(int(side) for side in look.split(",")) for look in text.split("/"))
    except ValueError:
        raise UserError(f"--looks takes short sides such as 256,608/416,1024, not {text!r}") from None


def show_looks(looks: tuple[tuple[int, ...], ...]) -> str:
    """The inverse of parse_looks."""
    return "/".join(",".join(map(str, look)) for look in looks)
