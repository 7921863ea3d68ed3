"""Export a model folder to one file for other runtimes. formats.py lists the formats and their modules.

posters export --model RUN/model --format onnx --preprocess --check posters/
"""

from __future__ import annotations

from glob import escape
from importlib import import_module
from pathlib import Path

from shards.errors import UserError
from shards.storage.files import atomic_write
from shards.storage.leftovers import remove_dead_partials
from toolkit.export.formats import FORMATS
from toolkit.export.options import ExportOptions
from toolkit.export.parity_check import measure, pictures_to_check, require_parity
from toolkit.model_folder.folder import load_model_folder


def run_export(options: ExportOptions) -> int:
    """Export a file, compare it with the model, and then give it its final name. Returns the exit status."""
    folder = load_model_folder(options.model)
    pictures = pictures_to_check(options.check)
    format = FORMATS[options.format]
    name = format.file.replace(".", "-preprocess." if options.preprocess else ".")
    out: Path = options.out or options.model / name
    if out.is_dir():
        raise UserError("path-exists", f"--out must be a file, but {out} is a folder: use --out {out / name}")
    remove_dead_partials(out.parent, escape(out.name))
    module = import_module(f"toolkit.export.{format.module}")
    content: bytes = module.exported(folder, options.preprocess, options.opset)
    with atomic_write(out) as stream:  # renamed when the block ends without an error, otherwise deleted
        stream.write(content)
        stream.flush()
        found = measure(module.opened(Path(stream.name), options.preprocess), folder, pictures, options.preprocess)
        require_parity(found, options.preprocess, options.tolerance)
    batches = ", ".join(map(str, sorted(found.batches)))
    print(f"max difference  {found}")
    print(f"checked         {found.images} images in batches of {batches}: {format.runtime} against PyTorch")
    print(f"exported        {out} ({len(content) / 1e6:.1f} MB)")
    return 0
