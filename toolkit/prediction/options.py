"""Options of ``posters predict``, and the kind of output that they select."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from shards.dataset.cache_options import CacheOptions
from shards.errors import Code, UserError
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from toolkit.config.extensions import is_place, parse_options
from toolkit.config.options import ForwardOptions, ModelOption, PassOptions
from toolkit.inference.naming import NamingOptions
from toolkit.prediction.formats import (
    ENDING_OF,
    ENDINGS,
    FOLDER_FORMATS,
    FORMATS,
    ShownOptions,
    add_format,
    format_name,
)

#: Pattern of the ending of a file, such as ``.txt``. The ending of the folder ``predictions-0.5`` does not match.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOption, PassOptions, ForwardOptions, NamingOptions, ShownOptions):
    """Options of ``posters predict``."""

    image: list[Path] | None = option(None, "-i")
    """One or more image files."""
    directory: Path | None = option(None, "-d")
    """Folder of images, with its subfolders."""
    shards: StoragePath | None = option(None, parse=storage_path)
    """Shard set (a folder or URL), or folder of images. The folder --out gets one file per shard."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    out: Path | None = option(None, "-o", old=("--output",))
    """Folder for the results, with one file per shard or per 512 images. For a few images, --out can be one file. Its
    ending selects the format: .json, .csv, .jsonl, .parquet, .txt."""
    format: str | None = option(None, "-f", parse=format_name)
    """Format of the results: parquet (default), csv or jsonl in a folder, and json or csv on the screen. Without
    --format, the screen shows text. A single file has the format of its ending. MODULE:CLASS: a format of your own."""
    format_options: list[str] | None = option(None, metavar="NAME=VALUE")
    """Options of a format of your own."""
    split: str | None = None
    """Predict only this split of --shards."""
    ignore_labels: bool = False
    """Predict --shards even if the labels of the set and of the model differ."""
    onnx: str | None = option(None, metavar="FILE", const="")
    """Run an ONNX file of `posters export` instead of PyTorch. The default of FILE is MODEL/model.onnx."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_place(self.format):
            add_format(str(self.format), parse_options(self.format_options, "--format-options"))
        elif self.format_options:
            raise UserError("option-missing", "--format-options needs --format MODULE:CLASS")
        given = [source for source in (self.image, self.directory, self.shards) if source is not None]
        if len(given) != 1:
            code: Code = "option-conflict" if given else "option-missing"
            raise UserError(code, "give exactly one of --image, --directory, --shards")
        if self.onnx is not None and (self.compile or self.precision in ("fp16", "bf16")):
            raise UserError("option-conflict", "--onnx cannot be combined with --compile or --precision; remove them")

    @property
    def onnx_path(self) -> Path:
        """Path of the exported file."""
        return Path(self.onnx) if self.onnx else self.model / "model.onnx"


def wants_a_folder(options: PredictOptions) -> bool:
    """Return whether the results are a folder of files. Raises UserError if options contradict each other."""
    output, is_folder = options.out, options.out is not None and options.out.is_dir()
    ending = "" if output is None or is_folder else output.suffix.lower()
    if options.shards is not None:
        if ending in ENDINGS:
            raise UserError(
                "option-value", f"--shards writes one file per shard: name a folder for --out, not the file {output}"
            )
        return True
    if options.directory is None or output is None or options.format not in (None, *FOLDER_FORMATS):
        return False
    if options.format is None and ending not in ENDINGS and _ENDING.fullmatch(ending):
        raise _unknown_ending(output, " or a folder with another name")
    return ending not in ENDINGS


def file_format(output: Path | None, format: str | None) -> str:
    """Return the format of results on the screen or in one file. Raises UserError if --format does not fit."""
    if output is None:
        if format is not None and not FORMATS[format].screen:
            raise UserError(
                "option-conflict",
                f"--format {format} is not for the screen; name a {ENDING_OF[format]} file or a folder with --out",
            )
        return format or "text"
    if output.is_dir():
        raise UserError(
            "option-value", f"{output} is a folder; results of a few images need one file, such as {output / 'x.csv'}"
        )
    by_ending = ENDINGS.get(output.suffix.lower(), format)
    if by_ending is None:
        raise _unknown_ending(output)
    if format not in (None, by_ending):
        raise UserError(
            "option-conflict",
            f"--format {format} does not match the ending of {output}; remove --format or change the ending",
        )
    return by_ending


def _unknown_ending(output: Path, otherwise: str = "") -> UserError:
    ending = f"the unknown ending {output.suffix}" if output.suffix else "no ending"
    return UserError("option-value", f"{output} has {ending}; name a file that ends in {', '.join(ENDINGS)}{otherwise}")
