"""A trained model in a few lines of Python: ``toolkit.load_model(folder).predict(images)``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from shards.errors import UserError
from shards.upright import upright_rgb
from toolkit.data.cuts import FileCut
from toolkit.data.faults import KEEP_ERRORS
from toolkit.data.files import RawTransform
from toolkit.data.jpeg import Undecodable
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.plan import EvalPlan, Share
from toolkit.distributed import DTYPES
from toolkit.forward import Forward, ForwardOptions, Tta, ahead_for, rows_for
from toolkit.inference import infer_shares
from toolkit.model_folder import ModelFolder, best_device, load_model_folder
from toolkit.predict_tables import Rows, genre_columns

#: A file's path, its bytes, an opened picture, or (h, w, 3) uint8 RGB pixels ((h, w) for grey ones).
ImageLike = Union[str, "os.PathLike[str]", bytes, Image.Image, np.ndarray]
HUB = "hf://"


class Predictor:
    """A model folder, ready to answer. Not safe to call from several threads at once."""

    def __init__(self, folder: ModelFolder, device: torch.device, precision: str = "no") -> None:
        """``precision``: no, bf16 or fp16, for autocast."""
        if precision not in DTYPES:
            raise UserError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
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
            except (OSError, ValueError) as error:
                raise UserError(f"{_name(image, number)} cannot be read: {error}") from None
        pixels = torch.from_numpy(np.stack(squares)).to(self.device)
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
        mirror image. Raises UserError for values out of range.
        """
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise UserError(f"threshold must be from 0 to 1, not {threshold}")
        if batch_size < 0:
            raise UserError(f"batch_size must be 0 (what suits the device) or more, not {batch_size}")
        chosen = _listed(images)
        decisions = self.folder.decisions if threshold is None else self.folder.decisions.at(threshold)
        labels, columns = self.folder.labels, genre_columns(self.folder.labels)
        frame = pd.DataFrame({"image": [_name(image, number) for number, image in enumerate(chosen)]})
        if not chosen:
            return frame.reindex(columns=["image", "genres", *columns.values(), "error"])
        options = ForwardOptions(tta=tta, embeddings=embeddings)
        forward = Forward(self.folder.model, self.folder.preprocessing, self.dtype, options)
        source = _Images(chosen, RawTransform(self.folder.preprocessing))
        shares = EvalPlan(len(chosen), rows_for(batch_size, self.device)).shares(0, 1)
        with Loader(
            source,
            decode_threads(0, self.device),
            ahead_for(self.device),
            device=self.device,
            policy=KEEP_ERRORS,
        ) as loader:
            scored = infer_shares(forward, loader, shares, source.cutter)
        rows = Rows.of(frame["image"].tolist(), scored, decisions)
        frame["genres"] = rows.names(labels)
        frame = pd.concat([frame, pd.DataFrame(rows.probabilities, columns=list(columns.values()))], axis=1)
        frame["error"] = pd.Series(rows.errors, dtype=object)
        if rows.embeddings is not None:
            vectors = [
                vector if error is None else None
                for vector, error in zip(rows.embeddings, rows.errors, strict=True)
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
    place = os.fspath(folder)
    if place.startswith(HUB):
        from toolkit.hub import fetch_model

        repository, _, revision = place.removeprefix(HUB).partition("@")
        path = fetch_model(repository, revision or None)
    else:
        path = Path(place)
    return Predictor(load_model_folder(path), torch.device(device) if device else best_device(), precision)


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

    def cutter(self, share: Share) -> _ImagesCut:
        return _ImagesCut([self.images[index] for index in share.indices], self.transform)


class _ImagesCut(FileCut):
    """The squares of a batch of images, whatever they are."""

    def __init__(self, images: Sequence[ImageLike], transform: RawTransform) -> None:
        super().__init__(len(images), transform.preprocessing.image_size, transform)
        self.pictures, self.raw = images, transform

    def square(self, row: int, data: memoryview) -> np.ndarray:
        """See Cut."""
        try:
            return _square(self.pictures[row], self.raw)
        except ValueError as error:  # the loader itself answers to OSError
            raise Undecodable(str(error)) from error


def _square(image: ImageLike, transform: RawTransform) -> np.ndarray:
    """(S, S, 3) uint8. Raises OSError, ValueError."""
    if isinstance(image, (str, os.PathLike)):
        return transform(Path(image).read_bytes())
    if isinstance(image, (bytes, bytearray, memoryview)):
        return transform(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(f"pixels must be (h, w, 3) or (h, w) uint8, not {image.shape} {image.dtype}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"no path, bytes, picture or array but {type(image).__name__}")
    return transform.square(upright_rgb(image))


def _listed(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    one = isinstance(images, (str, os.PathLike, bytes, Image.Image)) or (
        isinstance(images, np.ndarray) and images.ndim <= 3
    )
    return [images] if one else list(images)  # type: ignore[arg-type, list-item]


def _name(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else str(number)
