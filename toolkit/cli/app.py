"""Options of ``posters app``; its work is imported when asked for (torch and gradio are slow)."""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.text.inpaint import FILLS


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``posters app``."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model folder (RUN/model)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default %(default)s: this machine alone; the page has no password)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default %(default)s)")
    parser.add_argument(
        "--root-path",
        default="",
        metavar="ADDRESS",
        help="what a proxy in front serves the page under, such as https://example.org/posters",
    )
    parser.add_argument(
        "--fill", choices=FILLS, default="surround", help="how text is painted over (default surround)"
    )
    parser.add_argument(
        "--fill-model", type=Path, help="ONNX in-painting network instead: image and mask in, image out"
    )
    parser.add_argument(
        "--text",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for text, and answer once more without it (default: on)",
    )
    parser.set_defaults(run=_app)


def _app(args: argparse.Namespace) -> int:
    from toolkit.app.server import run_app

    return run_app(args)
