"""Options of ``posters predict``, and the kind of output that they select."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from shards.dataset.cache_options import CacheOptions
from shards.errors import Code, UserError
from shards.options import option
from shards.storage.kinds import SHARD_SET, kind_of
from shards.storage.paths import StoragePath, storage_path
from toolkit.config.extensions import is_place
from toolkit.config.options import ForwardOptions, ModelOption, PassOptions, parse_options
from toolkit.data.sources.image_urls import ImageUrl, image_places, is_set_url
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

    images: list[str] = option(factory=list, positional=True)
    """Images, folders of images with their subfolders, patterns such as "posters/*.jpg", URLs of images (http:// or
    https://), or one shard set."""
    image: list[Path | ImageUrl] | None = option(None, "-i", several="words", parse=image_places, metavar="IMAGE")
    """Images, folders, patterns or URLs. They can also be given without -i."""
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
    format_options: dict[str, Any] | None = option(
        None, metavar="NAME=VALUE", several="words", parse=partial(parse_options, flag="--format-options")
    )
    """Options of a format of your own."""
    split: str | None = None
    """Predict only this split of --shards."""
    ignore_labels: bool = False
    """Predict --shards even if the labels of the set and of the model differ."""
    onnx: str | None = option(None, metavar="FILE", const="")
    """Run an ONNX file of `posters export` instead of PyTorch. The default of FILE is MODEL/model.onnx."""
    sidecar: Literal["txt", "json"] | None = None
    """Write one file of genres beside each image of --image or --directory, instead of one result. txt has the genres
    in one line, separated by commas. json also has the probability of every genre."""
    overwrite: bool = False
    """Replace existing files of --sidecar."""
    allow_private: bool = False
    """Allow URLs of images on this machine and in private networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._place_images()
        if is_place(self.format):
            add_format(str(self.format), self.format_options or {})
        elif self.format_options:
            raise UserError("option-missing", "--format-options needs --format MODULE:CLASS")
        given = [source for source in (self.image, self.directory, self.shards) if source is not None]
        if len(given) != 1:
            code: Code = "option-conflict" if given else "option-missing"
            example = "`posters predict -m RUN poster.jpg`"
            raise UserError(code, f"give exactly one of images (or --image), --directory, --shards, such as {example}")
        if self.onnx is not None and (self.compile or self.precision in ("fp16", "bf16")):
            raise UserError("option-conflict", "--onnx cannot be combined with --compile or --precision; remove them")
        if self.sidecar is not None:
            self._check_sidecar(self.sidecar)
        elif self.overwrite:
            raise UserError("option-conflict", "--overwrite is only for --sidecar; remove it")

    def _check_sidecar(self, kind: str) -> None:
        """Raise UserError if an option does not fit --sidecar."""
        if self.shards is not None:
            raise UserError(
                "option-conflict",
                f"--sidecar {kind} writes beside image files, and the images of --shards are in tar files; give the "
                "folder of the images as --directory, or use --out",
            )
        if urls := [place for place in self.image or () if isinstance(place, ImageUrl)]:
            raise UserError(
                "option-conflict",
                f"--sidecar {kind} writes beside image files, and {urls[0]} is a URL; download it, or use --out",
            )
        unused = {
            "--out": self.out,
            "--format": self.format,
            "--verbose": self.verbose,
            "--embeddings": self.embeddings,
        }
        if others := [name for name, value in unused.items() if value]:
            raise UserError(
                "option-conflict", f"--sidecar {kind} writes no other results; remove {' and '.join(others)}"
            )

    def _place_images(self) -> None:
        """Move ``images`` to the field that they mean: shards for a shard set, directory for a folder, else image."""
        if not self.images:
            return
        only = self.images[0] if len(self.images) == 1 and self.image is None else ""
        name: str = "image"
        value: Any
        if only and self.shards is None and (is_set_url(only) or kind_of(Path(only)) == SHARD_SET):
            name, value = "shards", storage_path(only)
        elif only and self.directory is None and Path(only).is_dir():
            name, value = "directory", Path(only)
        else:
            value = [*image_places(self.images), *(self.image or ())]
        object.__setattr__(self, "images", [])
        object.__setattr__(self, name, value)

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
