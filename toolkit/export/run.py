"""A model folder as one file for other runtimes, which gets its name only once it has said what the model says.

posters export --model RUN/model --format onnx --preprocess --check posters/      posters export -m RUN/model
"""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.storage.files import atomic_write
from shards.storage.leftovers import remove_dead_partials
from toolkit.export.formats import FORMATS
from toolkit.export.parity_check import judge, measure, pictures_to_check
from toolkit.model_folder.folder import load_model_folder

if TYPE_CHECKING:
    import argparse


def run_export(args: argparse.Namespace) -> int:
    """Export, check, and only then rename; returns the exit status."""
    if args.tolerance is not None and not args.tolerance > 0:
        raise UserError(f"--tolerance must be over 0, not {args.tolerance}")
    if args.format != "onnx" and (args.preprocess or args.opset is not None):
        raise UserError("--preprocess and --opset go with --format onnx")
    folder = load_model_folder(args.model)
    pictures = pictures_to_check(args.check)
    format = FORMATS[args.format]
    name = format.file.replace(".", "-preprocess." if args.preprocess else ".")
    out: Path = args.out or args.model / name
    if out.is_dir():
        raise UserError(f"--out must be a file, and {out} is a folder: give {out / name}")
    remove_dead_partials(out.parent, escape(out.name))
    module = format.load()
    content: bytes = module.exported(folder, args.preprocess, args.opset)
    with atomic_write(out) as stream:  # renamed when the block ends well, gone when it does not
        stream.write(content)
        stream.flush()
        found = measure(module.opened(Path(stream.name), args.preprocess), folder, pictures, args.preprocess)
        judge(found, args.preprocess, args.tolerance)
    batches = ", ".join(map(str, sorted(found.batches)))
    print(f"max difference  {found}")
    print(f"checked         {found.images} images in batches of {batches}: {format.runtime} against PyTorch")
    print(f"exported        {out} ({len(content) / 1e6:.1f} MB)")
    return 0
