"""The images that a Python object means: a file, a URL, a folder, a pattern, a shard set, a picture or a list."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
import pandas as pd
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from shards.dataset.manifest import NAME
from shards.errors import UserError, one_line
from shards.inputs.images import ANY
from shards.inputs.orientation import upright_rgb
from shards.storage.endings import is_image_name
from shards.storage.paths import is_url
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_files import file_id, list_images, read_file
from toolkit.data.sources.image_urls import ImageUrl, image_places, is_set_url, require_urls
from toolkit.data.sources.shard_set import ShardSet
from toolkit.data.transforms.batch_transform import FileTransform, RawTransform

#: An image: the path or URL of a file, the bytes of a file, an open binary file, a Pillow picture, or an array of
#: uint8. An array is RGB (h, w, 3), RGBA (h, w, 4), or grey (h, w) or (h, w, 1).
ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, IO[bytes], Image.Image, np.ndarray]


def shard_set_of(images: Any) -> ShardSet | None:
    """Return the shard set that ``images`` is or names. Return None for all other images."""
    if isinstance(images, ShardSet):
        return images
    if isinstance(images, (str, os.PathLike)):
        text = os.fsdecode(images)
        if is_set_url(text) or os.path.isfile(os.path.join(text, NAME)):
            return ShardSet(text)
    return None


def files_of(path: str | os.PathLike[str]) -> list[Path] | None:
    """Return the images of a folder or the files of a pattern, sorted. Return None for the path of one file.

    Raises UserError if a folder has no images, or if a pattern with * or ? has no files.
    """
    text = os.fsdecode(path)
    if os.path.isdir(text):
        return list_images(Path(text))
    if os.path.lexists(text) or not glob.has_magic(text):
        return None
    found = sorted(Path(name) for name in glob.iglob(text, recursive=True) if is_image_name(os.path.basename(name)))
    if not found and ("*" in text or "?" in text):
        raise UserError("images-none", f"no image file matches {text}: check the folder and the pattern")
    return found or None


class Images:
    """A list of images as the source of a Loader, which decodes the images in its threads."""

    def __init__(self, images: Sequence[Any], transform: RawTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> memoryview:
        """Return no bytes, since the transform reads the image."""
        return memoryview(bytearray())

    def where(self, index: int) -> str:
        return name_of(self.images[index], index)

    def transforms(self, micro_batch: MicroBatch) -> FileTransform:
        """Return the transform from the images of a batch to model inputs."""
        side = self.transform.preprocessing.image_size
        return FileTransform(
            len(micro_batch.indices), side, lambda i, _: square(self.images[micro_batch.indices[i]], self.transform)
        )


def square(image: ImageLike | ImageUrl, transform: RawTransform) -> np.ndarray:
    """Return the (S, S, 3) uint8 input. Raises Undecodable or ValueError for a bad image."""
    try:
        if isinstance(image, (str, os.PathLike)):
            return transform(read_file(Path(os.fsdecode(image))))
        if isinstance(image, ImageUrl):
            return transform(image.read())
        if isinstance(image, (bytes, bytearray, memoryview)):
            return transform(bytes(image))
        if isinstance(image, _Unread):
            raise image
        if isinstance(image, np.ndarray):
            image = _picture(image)
        if not isinstance(image, Image.Image):
            raise ValueError(f"expected a path, bytes, file, picture or array, not {type(image).__name__}")
        if not 0 < image.width * image.height <= ANY.max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels, but 1 to {ANY.max_pixels} pixels are allowed")
        return transform.square(upright_rgb(image))
    except (Undecodable, UserError, ValueError):
        raise
    except Exception as error:  # plugins of Pillow raise many types of exceptions
        raise ValueError(f"{type(error).__name__}: {one_line(error)[:200]}") from error


def _picture(pixels: np.ndarray) -> Image.Image:
    """Convert an array to a picture. Raises ValueError for an invalid shape or type."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"pixels must be uint8, grey (h, w) or (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4), not "
            f"{pixels.dtype} {pixels.shape}"
        )
    if not pixels.size:
        raise ValueError(f"an empty array of shape {pixels.shape}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


class _Unread(ValueError):
    """The reason why an open file could not be read. It is shown in the row of the file."""


def listed(images: Any, allow_private: bool = False) -> list[Any]:
    """Return a list of images, from anything that `Predictor.predict` takes except shard sets.

    The list has the files of folders and patterns, an ImageUrl for each URL, and the bytes of each open file, since an
    open file can be read only once. ``allow_private``: see ImageUrl. Raises UserError for a URL that is not allowed.
    """
    one: Any = images
    if isinstance(images, np.ndarray):
        single = images.ndim in (2, 3) or (images.ndim < 2 and images.dtype.kind not in "OUS")
    else:
        single = isinstance(one, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or _is_file(one)
    if not single and (isinstance(one, (Mapping, pd.DataFrame)) or not isinstance(one, Iterable)):
        raise UserError("option-value", f"images must be an image or a list of images, not {type(one).__name__}")
    found = [place for image in ([one] if single else one) for place in _read(image, allow_private)]
    require_urls([place for place in found if isinstance(place, ImageUrl)])
    return found


def _is_file(image: Any) -> bool:
    return callable(getattr(image, "read", None)) and not isinstance(image, os.PathLike)


def _read(image: Any, allow_private: bool) -> list[Any]:
    """Return the images that an item of a list means: files, an ImageUrl, the bytes of an open file, or the item.

    Pillow does not detect a truncated JPEG or a JPEG with too many scans. So if Pillow has opened a JPEG but not
    decoded it, return the bytes of the file.
    """
    if isinstance(image, (str, os.PathLike)):
        return _places(image, allow_private)
    if isinstance(image, JpegImageFile) and image.tile and image.fp is not None and image.tell() == 0:
        image.fp.seek(0)
        image = image.fp
    if not _is_file(image):
        return [image]
    try:
        data = image.read()
        return [data if isinstance(data, bytes) else _Unread(f"read() returned {type(data).__name__}, not bytes")]
    except Exception as error:  # a file object of the user may raise anything
        return [_Unread(f"{type(error).__name__}: {one_line(error)[:200]}")]


def _places(path: str | os.PathLike[str], allow_private: bool) -> list[Any]:
    """Return the files of a folder or pattern, an ImageUrl, or the path of one file."""
    try:
        text = os.fsdecode(path)
    except Exception:  # a path class of the user may raise anything, and the row of the image has the error
        return [path]
    if not is_url(text):
        return files_of(text) or [path]
    return [ImageUrl(url.url, allow_private) for url in image_places([text]) if isinstance(url, ImageUrl)]


def name_of(image: ImageLike | ImageUrl, number: int) -> str:
    """Return the path of an image in the form of `file_id`, or its URL. Return ``number`` as text if it has none."""
    if isinstance(image, ImageUrl):
        return file_id(image.url)
    try:
        return file_id(os.fsdecode(image)) if isinstance(image, (str, os.PathLike)) else str(number)
    except Exception:  # a path class of the user may raise anything, and the error is in the row
        return str(number)
