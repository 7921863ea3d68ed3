"""A trained model in a few lines of Python: ``toolkit.load_model(folder).predict(images)``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from shards.cli.keywords import in_python
from shards.errors import UserError, one_line
from toolkit.config.extensions import parse_modules, trust
from toolkit.config.model_files import model_folder_of
from toolkit.config.options import ForwardOptions, ModelOption, Tta
from toolkit.data.loader.loader import Source
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.shard_set import ShardSet
from toolkit.data.transforms.batch_transform import RawTransform, Transforms, eval_transforms
from toolkit.device.defaults import DTYPES, usable_device
from toolkit.inference.forward import Forward
from toolkit.inference.naming import NamingOptions, require_genres
from toolkit.inference.rows import OWN, Rows, genre_columns
from toolkit.inference.scoring import infer_here
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction.sources import ImageLike, Images, listed, name_of, shard_set_of, square
from toolkit.prediction.threshold_map import Thresholds

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
        for number, image in enumerate(listed(images)):
            try:
                squares.append(square(image, transform))
            except (Undecodable, ValueError) as error:
                raise UserError("image-unreadable", f"{name_of(image, number)} cannot be read: {error}") from None
        side = self.folder.preprocessing.image_size
        pixels = torch.from_numpy(np.reshape(squares, (-1, side, side, 3)).astype(np.uint8)).to(self.device)
        return self.folder.preprocessing.normalize(pixels)

    def predict(
        self,
        images: ImageLike | ShardSet | Iterable[ImageLike],
        *,
        threshold: float | Mapping[str, float] | None = None,
        top_k: int | None = None,
        batch_size: int = 0,
        tta: Tta = "none",
        embeddings: bool = False,
        allow_private: bool = False,
    ) -> pd.DataFrame:
        """Return a table with one row per image, in order. Images that cannot be decoded have a row with an error.

        ``images`` is an image, a folder, a pattern such as ``posters/*.jpg``, an http:// or https:// URL of an image, a
        list of these, or a shard set: its folder, its URL or the result of `open_shards`. For a shard set at an http://
        or https:// URL, pass the result of `open_shards`.

        The column ``image`` has the path or URL of each image, or the number of an image without a path. For a shard
        set, the column ``id`` has the ids of the samples. ``genres`` lists the genres that reach their thresholds.
        These are the thresholds of the model. ``threshold`` replaces them: one number for all genres, or a dict for
        some genres, such as ``{"Drama": 0.9}``. With ``top_k``, ``genres`` lists the ``top_k`` most probable genres,
        whatever their thresholds.

        Each genre has a column of calibrated probabilities. ``error`` is None or the reason why the image cannot be
        decoded. ``embeddings`` adds the column ``embedding``: the (F,) float32 input of the classifier. ``tta="flip"``
        averages over each image and its mirror image. ``allow_private`` allows URLs on this machine and in private
        networks. Raises UserError for invalid options, and if an output is not finite.
        """
        _check_options(batch_size, tta)
        naming = self._naming(threshold, top_k)
        found = self._found(images, allow_private)
        # Reserve all column names of prediction files, so that genres have the same columns as in these files.
        columns = list(genre_columns(self.genres, ("image", *OWN)).values())
        frame = pd.DataFrame({found.key: found.ids})
        if not found.ids:
            return frame.reindex(columns=["image", "genres", *columns, "error"])
        options = ForwardOptions(tta=tta, embeddings=embeddings)
        forward = Forward(self.folder.model, self.folder.preprocessing, self.dtype, options)
        scored = infer_here(forward, found.source, found.transforms, self.device, batch_size)
        rows = Rows.of(found.ids, scored, self.folder, naming, found.key)
        frame["genres"] = rows.names()
        frame = pd.concat([frame, pd.DataFrame(rows.probabilities, columns=columns)], axis=1)
        frame["error"] = pd.Series(rows.errors, dtype=object)
        if rows.embeddings is not None:
            vectors = [
                vector if error is None else None for vector, error in zip(rows.embeddings, rows.errors, strict=True)
            ]
            frame["embedding"] = pd.Series(vectors, dtype=object)
        return frame

    def _naming(self, threshold: Any, top_k: Any) -> NamingOptions:
        """Return the options that decide which genres are named. Raises UserError for invalid options."""
        given = threshold if isinstance(threshold, Mapping) else {} if threshold is None else {"": threshold}
        require_genres([genre for genre in given if genre != ""], self.folder.labels, "threshold")
        for genre, value in given.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
                what = f"threshold{f' of {genre!r}' if genre else ''} must be a number from 0 to 1"
                rest = ", a dict of genres and numbers, or None" if threshold is value else ""
                raise UserError("option-value", f"{what}{rest}, not {one_line(repr(value))[:60]}")
        if top_k is not None and threshold is not None:
            raise UserError("option-conflict", "top_k does not use thresholds; remove threshold or top_k")
        whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
        if top_k is not None and not (whole and 1 <= top_k <= len(self.genres)):
            raise UserError(
                "option-value", f"top_k must be from 1 to {len(self.genres)}, the number of genres, not {top_k!r}"
            )
        return NamingOptions(threshold=None if threshold is None else given, top_k=top_k)

    def _found(self, images: Any, allow_private: bool) -> _Found:
        """Return the images to predict, from anything that `predict` takes."""
        preprocessing = self.folder.preprocessing
        if (shards := shard_set_of(images)) is not None:
            transforms = eval_transforms(shards.reader, preprocessing, "auto", self.device)
            return _Found("id", shards.ids, shards.reader, transforms)
        chosen = listed(images, allow_private)
        source = Images(chosen, RawTransform(preprocessing))
        names = [name_of(image, number) for number, image in enumerate(chosen)]
        return _Found("image", names, source, source.transforms)

    def __repr__(self) -> str:
        return (
            f"Predictor({self.folder.config['architecture']}, {len(self.genres)} genres, on {self.device}, "
            f"from {self.folder.path})"
        )


@in_python(ModelOption)
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
    modules = [trust_code] if isinstance(trust_code, str) else trust_code
    if not isinstance(modules, Sequence) or not all(isinstance(module, str) for module in modules):
        raise UserError("option-value", f"trust_code must be a list of names of modules, not {trust_code!r}")
    trust(parse_modules(",".join(modules)))
    if not isinstance(folder, (str, os.PathLike)):
        raise UserError("option-value", f"folder must be a path, not {type(folder).__name__}")
    place = os.fspath(folder)
    if place.startswith(HUB):
        from toolkit.export.hub import fetch_model

        repository, _, revision = place.removeprefix(HUB).partition("@")
        path = fetch_model(repository, revision or None)
    else:
        path = model_folder_of(place)
    chosen = usable_device(device)  # before the model is read, which takes longer
    return Predictor(load_model_folder(path), chosen, precision)


def _check_options(batch_size: Any, tta: Any) -> None:
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
