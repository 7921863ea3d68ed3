"""A trained model in a few lines of Python: ``toolkit.load_model(folder).predict(images)``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, NamedTuple, Union, get_args

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import nn

from shards.errors import UserError, one_line
from shards.inputs.images import ANY
from shards.inputs.orientation import upright_rgb
from toolkit.config.extensions import parse_modules, trust
from toolkit.config.model_files import model_folder_of
from toolkit.config.options import ForwardOptions, Tta
from toolkit.data.loader.loader import Source
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_files import file_id, read_file
from toolkit.data.sources.shard_set import ShardSet
from toolkit.data.transforms.batch_transform import FileTransform, RawTransform, Transforms, eval_transforms
from toolkit.device.defaults import DTYPES, best_device
from toolkit.inference.forward import Forward
from toolkit.inference.naming import NamingOptions
from toolkit.inference.rows import OWN, Rows, genre_columns
from toolkit.inference.scoring import infer_here
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction.sources import files_of, shard_set_of
from toolkit.prediction.threshold_map import Thresholds

#: An image: the path of a file, the bytes of a file, an open binary file, a Pillow picture, or an array of uint8.
#: An array is RGB (h, w, 3), RGBA (h, w, 4), or grey (h, w) or (h, w, 1).
ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, IO[bytes], Image.Image, np.ndarray]
HUB = "hf://"


class Predictor:
    """A loaded model that predicts the genres of images. Not thread-safe."""

    def __init__(self, folder: ModelFolder, device: torch.device, precision: str = "no") -> None:
        """Move the model to ``device``. Raises UserError if ``precision`` (autocast) is not "no", "bf16" or "fp16"."""
        if not isinstance(precision, str) or precision not in DTYPES:
            raise UserError("option-value", f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
        self.folder, self.device, self.dtype = folder, device, DTYPES[precision]
        folder.model.to(device)

    @property
    def model(self) -> nn.Module:
        """The timm model, from normalised (n, 3, S, S) pictures to (n, G) logits before calibration."""
        return self.folder.model

    @property
    def genres(self) -> tuple[str, ...]:
        """The G genres in the order of the model's outputs."""
        return self.folder.labels.genres

    @property
    def thresholds(self) -> Thresholds:
        """Genre → threshold. A genre is named if its calibrated probability reaches its threshold.

        ``model.thresholds["Drama"] = 0.9`` changes the threshold of the loaded model, but not of its folder.
        """
        return Thresholds(self.folder)

    @thresholds.setter
    def thresholds(self, thresholds: Mapping[str, float]) -> None:
        Thresholds(self.folder).update(thresholds)

    def preprocess(self, images: ImageLike | Sequence[ImageLike]) -> torch.Tensor:
        """Return (n, 3, S, S) float32 inputs, on the device of the model. Raises UserError for an unreadable image."""
        transform = RawTransform(self.folder.preprocessing)
        squares = []
        for number, image in enumerate(_listed(images)):
            try:
                squares.append(_square(image, transform))
            except (Undecodable, ValueError) as error:
                raise UserError("image-unreadable", f"{_name(image, number)} cannot be read: {error}") from None
        side = self.folder.preprocessing.image_size
        pixels = torch.from_numpy(np.reshape(squares, (-1, side, side, 3)).astype(np.uint8)).to(self.device)
        return self.folder.preprocessing.normalize(pixels)

    def predict(
        self,
        images: ImageLike | ShardSet | Iterable[ImageLike],
        *,
        threshold: float | None = None,
        batch_size: int = 0,
        tta: Tta = "none",
        embeddings: bool = False,
    ) -> pd.DataFrame:
        """Return a table with one row per image, in order. Images that cannot be decoded have a row with an error.

        ``images`` is an image, a list of images, a folder, a pattern such as ``posters/*.jpg``, or a shard set: its
        folder, its URL or the result of `open_shards`.

        The column ``image`` has the path of each image, or the number of an image without a path. For a shard set, the
        column ``id`` has the ids of the samples. ``genres`` lists the
        genres that reach ``threshold``, or their own thresholds if ``threshold`` is None. Each genre has a column of
        calibrated probabilities. ``error`` is None or the reason why the image cannot be decoded. The option
        ``embeddings`` adds the column ``embedding``: the (F,) float32 input of the classifier. ``tta="flip"`` averages
        over each image and its mirror image. Raises UserError for invalid options, and if an output is not finite.
        """
        _check_options(threshold, batch_size, tta)
        found = self._found(images)
        # Reserve all column names of prediction files, so that genres have the same columns as in these files.
        columns = list(genre_columns(self.genres, ("image", *OWN)).values())
        frame = pd.DataFrame({found.key: found.ids})
        if not found.ids:
            return frame.reindex(columns=["image", "genres", *columns, "error"])
        options = ForwardOptions(tta=tta, embeddings=embeddings)
        forward = Forward(self.folder.model, self.folder.preprocessing, self.dtype, options)
        scored = infer_here(forward, found.source, found.transforms, self.device, batch_size)
        rows = Rows.of(found.ids, scored, self.folder, NamingOptions(threshold=threshold), found.key)
        frame["genres"] = rows.names()
        frame = pd.concat([frame, pd.DataFrame(rows.probabilities, columns=columns)], axis=1)
        frame["error"] = pd.Series(rows.errors, dtype=object)
        if rows.embeddings is not None:
            vectors = [
                vector if error is None else None for vector, error in zip(rows.embeddings, rows.errors, strict=True)
            ]
            frame["embedding"] = pd.Series(vectors, dtype=object)
        return frame

    def _found(self, images: Any) -> _Found:
        """Return the images to predict, from anything that `predict` takes."""
        preprocessing = self.folder.preprocessing
        if (shards := shard_set_of(images)) is not None:
            transforms = eval_transforms(shards.reader, preprocessing, "auto", self.device)
            return _Found("id", shards.ids, shards.reader, transforms)
        files = files_of(images) if isinstance(images, (str, os.PathLike)) else None
        chosen = _listed(images if files is None else files)
        source = _Images(chosen, RawTransform(preprocessing))
        return _Found("image", [_name(image, number) for number, image in enumerate(chosen)], source, source.transforms)

    def __repr__(self) -> str:
        return (
            f"Predictor({self.folder.config['architecture']}, {len(self.genres)} genres, on {self.device}, "
            f"from {self.folder.path})"
        )


def load_model(
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: str = "no",
    trust_code: Sequence[str] = (),
) -> Predictor:
    """Load the model of a run folder (RUN) or model folder (RUN/model) onto ``device``. The default is a GPU, if any.

    trust_code: names of modules whose classes the model may use, such as the module of a head of your own. Their code
    runs with your rights. The trust lasts until the process ends. A class that was registered with `toolkit.register`
    needs no trust.
    ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION`` is a folder on the Hugging Face Hub, which is downloaded once.
    Raises UserError if the folder is incomplete. The message says how to repair it.
    """
    trust(parse_modules(",".join([trust_code] if isinstance(trust_code, str) else trust_code)))
    if not isinstance(folder, (str, os.PathLike)):
        raise UserError("option-value", f"folder must be a path, not {type(folder).__name__}")
    place = os.fspath(folder)
    if place.startswith(HUB):
        from toolkit.export.hub import fetch_model

        repository, _, revision = place.removeprefix(HUB).partition("@")
        path = fetch_model(repository, revision or None)
    else:
        path = model_folder_of(place)
    try:
        chosen = torch.device(device) if device else best_device()
        torch.empty(0, device=chosen)
    except Exception as error:  # every backend of torch has its own exceptions
        raise UserError(
            "device", f"device {device!r} cannot be used ({one_line(error)[:200]}); use cpu or cuda"
        ) from None
    return Predictor(load_model_folder(path), chosen, precision)


def _check_options(threshold: Any, batch_size: Any, tta: Any) -> None:
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0.0 <= threshold <= 1.0):
        raise UserError("option-value", f"threshold must be a number from 0 to 1, or None, not {threshold!r}")
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 0:
        raise UserError(
            "option-value", f"batch_size must be 0 (chosen for the device) or a larger integer, not {batch_size!r}"
        )
    if not isinstance(tta, str) or tta not in get_args(Tta):
        raise UserError("option-value", f"tta must be {' or '.join(get_args(Tta))}, not {tta!r}")


class _Found(NamedTuple):
    """Images as the source of a Loader. ``key`` is the name of the column with ``ids``."""

    key: str
    ids: list[str]
    source: Source
    transforms: Transforms


class _Images:
    """A list of images as the source of a Loader, which decodes the images in its threads."""

    def __init__(self, images: Sequence[ImageLike], transform: RawTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> memoryview:
        """Return no bytes, since the transform reads the image."""
        return memoryview(bytearray())

    def where(self, index: int) -> str:
        return _name(self.images[index], index)

    def transforms(self, micro_batch: MicroBatch) -> FileTransform:
        """Return the transform from the images of a batch to model inputs."""
        side = self.transform.preprocessing.image_size
        return FileTransform(
            len(micro_batch.indices), side, lambda i, _: _square(self.images[micro_batch.indices[i]], self.transform)
        )


def _square(image: ImageLike, transform: RawTransform) -> np.ndarray:
    """Return the (S, S, 3) uint8 input. Raises Undecodable or ValueError for a bad image."""
    try:
        if isinstance(image, (str, os.PathLike)):
            return transform(read_file(Path(os.fsdecode(image))))
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


def _listed(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return a list of the images. Replace each open file by its bytes, since an open file can be read only once."""
    one: Any = images
    if isinstance(images, np.ndarray):
        single = images.ndim in (2, 3) or (images.ndim < 2 and images.dtype.kind not in "OUS")
    else:
        single = isinstance(one, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or _is_file(one)
    if single:
        return [_read(one)]
    if isinstance(one, (Mapping, pd.DataFrame)) or not isinstance(one, Iterable):
        raise UserError("option-value", f"images must be an image or a list of images, not {type(one).__name__}")
    return [_read(image) for image in one]


def _is_file(image: Any) -> bool:
    return callable(getattr(image, "read", None)) and not isinstance(image, os.PathLike)


def _read(image: Any) -> Any:
    """Return an image, or the bytes of an open file from its current position.

    Pillow does not detect a truncated JPEG or a JPEG with too many scans. So if Pillow has opened a JPEG but not
    decoded it, return the bytes of the file.
    """
    if isinstance(image, JpegImageFile) and image.tile and image.fp is not None and image.tell() == 0:
        image.fp.seek(0)
        image = image.fp
    if not _is_file(image):
        return image
    try:
        data = image.read()
        return data if isinstance(data, bytes) else _Unread(f"read() returned {type(data).__name__}, not bytes")
    except Exception as error:  # a file object of the user may raise anything
        return _Unread(f"{type(error).__name__}: {one_line(error)[:200]}")


def _name(image: ImageLike, number: int) -> str:
    """Return the path of an image in the form of `file_id`. Return ``number`` as text if the image has no path."""
    try:
        return file_id(os.fsdecode(image)) if isinstance(image, (str, os.PathLike)) else str(number)
    except Exception:  # a path class of the user may raise anything, and the error is in the row
        return str(number)
