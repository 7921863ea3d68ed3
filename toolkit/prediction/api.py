"""A trained model in a few lines of Python: ``toolkit.load_model(folder).predict(images)``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, Union, get_args

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import nn

from shards.errors import UserError, one_line
from shards.inputs.images import ANY
from shards.inputs.orientation import upright_rgb
from toolkit.config.options import ForwardOptions, Tta
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_files import file_id, read_file
from toolkit.data.transforms.batch_transform import FileTransform, RawTransform
from toolkit.device.defaults import DTYPES, best_device
from toolkit.inference.forward import Forward
from toolkit.inference.rows import OWN, NamingOptions, Rows, genre_columns
from toolkit.inference.scoring import infer_here
from toolkit.model_folder.folder import ModelFolder, load_model_folder

#: A file's path, its bytes, a file opened for reading bytes, an opened picture, or uint8 pixels: RGB (h, w, 3),
#: RGBA (h, w, 4), grey (h, w) or (h, w, 1).
ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, IO[bytes], Image.Image, np.ndarray]
HUB = "hf://"


class Predictor:
    """A model folder, ready to answer. Not safe to call from several threads at once."""

    def __init__(self, folder: ModelFolder, device: torch.device, precision: str = "no") -> None:
        """``precision``: no, bf16 or fp16, for autocast."""
        if not isinstance(precision, str) or precision not in DTYPES:
            raise UserError("option-value", f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
        self.folder, self.device, self.dtype = folder, device, DTYPES[precision]
        folder.model.to(device)

    @property
    def model(self) -> nn.Module:
        """The timm model: normalised (n, 3, S, S) → (n, G) logits, before calibration."""
        return self.folder.model

    @property
    def genres(self) -> tuple[str, ...]:
        """The G genres in the order of the model's outputs."""
        return self.folder.labels.genres

    @property
    def thresholds(self) -> dict[str, float]:
        """Genre → calibrated probability in [0, 1] from which it is named."""
        return dict(zip(self.genres, self.folder.thresholds.tolist(), strict=True))

    def preprocess(self, images: ImageLike | Sequence[ImageLike]) -> torch.Tensor:
        """(n, 3, S, S) float32 on the device, as ``model`` wants it. Raises UserError for what cannot be decoded."""
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
        images: ImageLike | Iterable[ImageLike],
        *,
        threshold: float | None = None,
        batch_size: int = 0,
        tta: Tta = "none",
        embeddings: bool = False,
    ) -> pd.DataFrame:
        """One row per image, in order, also for those that cannot be decoded.

        Columns: image (its path, or its number for pictures in memory); genres (list: those whose probability reaches
        their threshold, or ``threshold`` if given); one float column of calibrated probabilities in [0, 1] per genre,
        NaN where there is an error; error (None, or why the image could not be decoded); with ``embeddings`` also
        embedding ((F,) float32 arrays: what the classifier is given). ``tta="flip"`` averages over each image and its
        mirror image. Raises UserError for options of another type or out of range, and for outputs that are not finite.
        """
        _check_options(threshold, batch_size, tta)
        chosen = _listed(images)
        # OWN, for genres to have the columns that they have in files of predictions.
        columns = list(genre_columns(self.genres, ("image", *OWN)).values())
        frame = pd.DataFrame({"image": [_name(image, number) for number, image in enumerate(chosen)]})
        if not chosen:
            return frame.reindex(columns=["image", "genres", *columns, "error"])
        options = ForwardOptions(tta=tta, embeddings=embeddings)
        forward = Forward(self.folder.model, self.folder.preprocessing, self.dtype, options)
        source = _Images(chosen, RawTransform(self.folder.preprocessing))
        scored = infer_here(forward, source, source.transforms, self.device, batch_size)
        rows = Rows.of(frame["image"].tolist(), scored, self.folder, NamingOptions(threshold=threshold), "image")
        frame["genres"] = rows.names()
        frame = pd.concat([frame, pd.DataFrame(rows.probabilities, columns=columns)], axis=1)
        frame["error"] = pd.Series(rows.errors, dtype=object)
        if rows.embeddings is not None:
            vectors = [
                vector if error is None else None for vector, error in zip(rows.embeddings, rows.errors, strict=True)
            ]
            frame["embedding"] = pd.Series(vectors, dtype=object)
        return frame

    def __repr__(self) -> str:
        return (
            f"Predictor({self.folder.config['architecture']}, {len(self.genres)} genres, on {self.device}, "
            f"from {self.folder.path})"
        )


def load_model(
    folder: str | os.PathLike[str], *, device: str | torch.device | None = None, precision: str = "no"
) -> Predictor:
    """The model of a folder that training left (RUN/model), on ``device`` (default: the GPU where there is one).

    ``hf://USER/NAME`` is a folder on the Hugging Face Hub (``posters push``), which is downloaded once; after an ``@``
    may stand its revision. Raises shards.errors.UserError, whose message says what to do, if the folder is not whole.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise UserError("option-value", f"a model's folder must be a path, not {type(folder).__name__}")
    place = os.fspath(folder)
    if place.startswith(HUB):
        from toolkit.export.hub import fetch_model

        repository, _, revision = place.removeprefix(HUB).partition("@")
        path = fetch_model(repository, revision or None)
    else:
        path = Path(place)
    try:
        chosen = torch.device(device) if device else best_device()
        torch.empty(0, device=chosen)
    except Exception as error:  # each backend of torch raises its own type
        raise UserError(
            "device", f"device {device!r} cannot be used ({one_line(error)[:200]}): give cpu or cuda"
        ) from None
    return Predictor(load_model_folder(path), chosen, precision)


def _check_options(threshold: Any, batch_size: Any, tta: Any) -> None:
    """Raise UserError for a type or value that means nothing."""
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0.0 <= threshold <= 1.0):
        raise UserError("option-value", f"threshold must be a number from 0 to 1, or None, not {threshold!r}")
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 0:
        raise UserError(
            "option-value", f"batch_size must be 0 (what suits the device) or a larger integer, not {batch_size!r}"
        )
    if not isinstance(tta, str) or tta not in get_args(Tta):
        raise UserError("option-value", f"tta must be {' or '.join(get_args(Tta))}, not {tta!r}")


class _Images:
    """Images of all kinds as a Loader's source; pixels are made in its threads."""

    def __init__(self, images: Sequence[ImageLike], transform: RawTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> memoryview:
        """Nothing: a picture in memory has no bytes. Its cut knows where it is."""
        return memoryview(bytearray())

    def where(self, index: int) -> str:
        return _name(self.images[index], index)

    def transforms(self, micro_batch: MicroBatch) -> FileTransform:
        """The squares of a batch of images, whatever they are."""
        side = self.transform.preprocessing.image_size
        return FileTransform(
            len(micro_batch.indices),
            side,
            lambda row, _: _square(self.images[micro_batch.indices[row]], self.transform),
        )


def _square(image: ImageLike, transform: RawTransform) -> np.ndarray:
    """(S, S, 3) uint8. Raises Undecodable, ValueError; UserError for a file that cannot be read now."""
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
            raise ValueError(f"no path, bytes, file, picture or array but {type(image).__name__}")
        if not 0 < image.width * image.height <= ANY.max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels, not from 1 to {ANY.max_pixels}")
        return transform.square(upright_rgb(image))
    except (Undecodable, UserError, ValueError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise ValueError(f"{type(error).__name__}: {one_line(error)[:200]}") from error


def _picture(pixels: np.ndarray) -> Image.Image:
    """An array as a picture. Raises ValueError for shapes and types that are none."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"pixels must be uint8, grey (h, w) or (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4), not "
            f"{pixels.dtype} {pixels.shape}"
        )
    if not pixels.size:
        raise ValueError(f"an empty array of shape {pixels.shape}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


class _Unread(ValueError):
    """Why an open file could not be read: its row says so."""


def _listed(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """The images of one or many; files are read, once, since a batch may look at an image twice.

    Raises UserError for what is neither.
    """
    one: Any = images
    if isinstance(images, np.ndarray):
        single = images.ndim in (2, 3) or (images.ndim < 2 and images.dtype.kind not in "OUS")
    else:
        single = isinstance(one, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or _is_file(one)
    if single:
        return [_read(one)]
    if isinstance(one, (Mapping, pd.DataFrame)) or not isinstance(one, Iterable):
        raise UserError("option-value", f"images must be a list of images, or one of them, not {type(one).__name__}")
    return [_read(image) for image in one]


def _is_file(image: Any) -> bool:
    return callable(getattr(image, "read", None)) and not isinstance(image, os.PathLike)


def _read(image: Any) -> Any:
    """An image, or the bytes of an open file from where it stands.

    A JPEG that Pillow has opened and not decoded yet is such a file, too: Pillow looks neither at how many scans it has
    nor whether it is cut.
    """
    if isinstance(image, JpegImageFile) and image.tile and image.fp is not None and image.tell() == 0:
        image.fp.seek(0)
        image = image.fp
    if not _is_file(image):
        return image
    try:
        data = image.read()
        return data if isinstance(data, bytes) else _Unread(f"read() gave {type(data).__name__}, not bytes")
    except Exception as error:  # a file of the user's own may raise anything
        return _Unread(f"{type(error).__name__}: {one_line(error)[:200]}")


def _name(image: ImageLike, number: int) -> str:
    """A path as files of predictions have it; else the number."""
    try:
        return file_id(os.fsdecode(image)) if isinstance(image, (str, os.PathLike)) else str(number)
    except Exception:  # a path of the user's own class may raise anything; its row says what
        return str(number)
