"""What the options of ``posters predict`` ask for, be it of a few images or of a whole set."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from shards.dataset.cache_options import CacheOptions
from shards.errors import Code, UserError
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from toolkit.config.options import ForwardOptions, ModelOption, PassOptions
from toolkit.inference.rows import NamingOptions
from toolkit.prediction.formats import ENDINGS, FOLDER_FORMATS, FORMATS, FormatName, ShownOptions

#: What people call a file by. Folders may have a dot in their names, too: ``predictions-0.5``.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOption, PassOptions, ForwardOptions, NamingOptions, ShownOptions):
    """What ``posters predict`` is asked for."""

    image: list[Path] | None = option(None, "-i")
    """One or more image files."""
    directory: Path | None = option(None, "-d")
    """Folder of images, with its subfolders."""
    shards: StoragePath | None = option(None, parse=storage_path)
    """Shard set (a folder or URL), or folder of images; a file per shard goes to the folder --out."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    out: Path | None = option(None, "-o", old=("--output",))
    """Folder for the results, a file per shard or per 512 images; or one file for the results of images, by its ending:
    .json, .csv, .jsonl, .parquet, .txt."""
    format: FormatName | None = option(None, "-f")
    """Of a folder's files: parquet (default), csv, jsonl; of one file: by its ending (default), or one of these; on the
    screen: json, csv (default: text)."""
    split: str | None = None
    """With --shards: only this split."""
    ignore_labels: bool = False
    """With --shards: predict though its labels differ."""
    onnx: str | None = option(None, metavar="FILE", const="")
    """Run what `posters export` made instead of PyTorch (default MODEL/model.onnx)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [source for source in (self.image, self.directory, self.shards) if source is not None]
        if len(given) != 1:
            code: Code = "option-conflict" if given else "option-missing"
            raise UserError(code, "one of the options --image, --directory, --shards is required, and no second one")
        if self.onnx is not None and (self.compile or self.precision in ("fp16", "bf16")):
            raise UserError(
                "option-conflict", "--onnx runs the file as it was exported: leave --compile and --precision out"
            )

    @property
    def onnx_path(self) -> Path:
        """The exported file that ``onnx`` asks for."""
        return Path(self.onnx) if self.onnx else self.model / "model.onnx"


def wants_a_folder(options: PredictOptions) -> bool:
    """Whether the results are a folder of files, not text or one file. Raises UserError where that is not clear."""
    output, is_folder = options.out, options.out is not None and options.out.is_dir()
    ending = "" if output is None or is_folder else output.suffix.lower()
    if options.shards is not None:
        if ending in ENDINGS:
            raise UserError(
                "option-value", f"--shards writes a file per shard: name a folder for --out, not the file {output}"
            )
        return True
    if options.directory is None or output is None or options.format not in (None, *FOLDER_FORMATS):
        return False
    if options.format is None and ending not in ENDINGS and _ENDING.fullmatch(ending):
        raise _unknown_ending(output, " or a folder whose name does not end so")
    return ending not in ENDINGS


def file_format(output: Path | None, format: str | None) -> str:
    """How results that are not a folder are written: text, json, csv, jsonl, parquet. Raises UserError if unclear."""
    if output is None:
        if format is not None and not FORMATS[format].screen:
            raise UserError(
                "option-conflict",
                f"--format {format} is not for the screen: give a file that ends in .{format}, or a folder for --out",
            )
        return format or "text"
    if output.is_dir():
        raise UserError(
            "option-value", f"{output} is a folder; a few images' results go into one file, such as {output / 'x.csv'}"
        )
    by_ending = ENDINGS.get(output.suffix.lower(), format)
    if by_ending is None:
        raise _unknown_ending(output)
    if format not in (None, by_ending):
        raise UserError(
            "option-conflict", f"--format {format} does not fit the ending of {output}: leave one of them out"
        )
    return by_ending


def _unknown_ending(output: Path, otherwise: str = "") -> UserError:
    ending = f"the ending {output.suffix}" if output.suffix else "no ending"
    return UserError(
        "option-value",
        f"{output} has {ending}, which names no format: give a file that ends in {', '.join(ENDINGS)}{otherwise}",
    )
