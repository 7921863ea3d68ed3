"""Predictions of a model on raw posters, on the same posters without text, and on controls.

    posters audit --model RUN/model --images RAW --cleaned CLEANED [--metadata CSV] [--out DIR]

Painting over the text also removes the picture under the text. So the effect of the text is compared with the effect
of a control: the same shapes painted elsewhere on the same poster (control.py). selection.py chooses the posters, and
effects.py computes the effects. Memory contains the pictures of two batches and the logits of all pictures. With 19
genres and four controls, the logits of a poster take half a kilobyte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from shards.errors import UserError, one_line
from shards.inputs.images import BadImage
from shards.inputs.rejections import Rejection
from shards.progress import progress
from shards.text.inpaint import Fill
from shards.text.registry import make_fill
from toolkit.audit.effects import CONTROLS
from toolkit.audit.images import Areas, Poster, make_pictures
from toolkit.audit.options import AuditOptions
from toolkit.audit.selection import Chosen
from toolkit.device.defaults import autocast_dtype, decode_threads
from toolkit.inference.forward import Forward
from toolkit.model_folder.folder import ModelFolder

#: Function that takes the name of a fill (a method of `posters clean`) and returns the function that paints.
FillMaker = Callable[[str], Fill]


@dataclass
class Audited:
    """The results for n posters, in the order of the report of `posters clean`."""

    posters: list[Poster]
    logits: np.ndarray
    """(n, 3 + K, G) calibrated logits of the pictures: raw, re-encoded, cleaned, then K controls."""
    areas: list[Areas]
    left_out: list[Rejection]

    @property
    def compared(self) -> np.ndarray:
        """Return (n,) bool: whether a poster has a comparable control."""
        return np.array([not area.problem() for area in self.areas], dtype=bool)


def fill_maker(model: Path | None) -> FillMaker:
    """Return a function that returns a painting method by its name. The method "model" uses the ONNX file ``model``."""

    @cache
    def fill(name: str) -> Fill:
        network = model if name == "model" else None
        return make_fill("surround" if name == "model" and model is None else name, network)

    if model is not None:
        fill("model")  # report an invalid file now, not after hours of work
    return fill


def audit_posters(
    folder: ModelFolder, chosen: Chosen, options: AuditOptions, fills: FillMaker, accelerator: Accelerator
) -> Audited:
    """Compute the logits of all pictures. Raises UserError if no poster is readable or an output is not finite."""
    model = folder.model.to(accelerator.device)
    network = Forward(model, folder.preprocessing, autocast_dtype(accelerator))
    kinds = CONTROLS + options.controls
    per_batch = max(1, options.batch_size // kinds)
    logits = np.empty((len(chosen.posters), kinds, len(folder.labels)), dtype=np.float32)
    result = Audited([], logits, [], list(chosen.left_out))
    waiting: list[np.ndarray] = []

    def forward() -> None:
        done = len(result.posters) - len(waiting)
        rows = np.concatenate(waiting)
        found = network.logits(rows, options.batch_size, accelerator.device)
        logits[done : len(result.posters)] = found.reshape(len(waiting), kinds, -1)
        waiting.clear()

    with progress(len(chosen.posters), "auditing") as bar:
        for poster, work in _prepared(folder, chosen.posters, options, fills, per_batch):
            bar.update()
            if isinstance(work, BadImage):
                result.left_out.append(work.rejection(poster.id))
                continue
            squares, areas = work
            result.posters.append(poster)
            result.areas.append(areas)
            waiting.append(squares)
            if len(waiting) == per_batch:
                forward()
        if waiting:
            forward()
    if not result.posters:
        first = result.left_out[-1]
        raise UserError(
            "images-none",
            f"none of {len(chosen.posters)} posters with text could be audited, for example {one_line(first.id)}: "
            f"{first.reason} ({first.detail}); check --images and --cleaned",
        )
    result.logits = logits[: len(result.posters)]
    if not np.isfinite(result.logits).all():
        bad = int((~np.isfinite(result.logits).all(axis=(1, 2))).argmax())
        raise UserError(
            "not-finite",
            f"the model's output on poster {one_line(result.posters[bad].id)} is not finite; try --precision no",
        )
    result.logits = folder.decisions.logits(result.logits)  # the thresholds are for calibrated probabilities
    return result


Work = tuple[np.ndarray, Areas]


def _prepared(
    folder: ModelFolder, posters: Sequence[Poster], options: AuditOptions, fills: FillMaker, ahead: int
) -> Iterator[tuple[Poster, Work | BadImage]]:
    """Yield each poster with its model inputs, in order. Threads paint the pictures, at most two batches ahead."""

    def work(poster: Poster) -> Work | BadImage:
        try:
            pictures = make_pictures(poster, options, folder.preprocessing, fills(poster.fill))
            return pictures.squares(folder.preprocessing), pictures.areas()
        except BadImage as bad:
            return bad

    threads = decode_threads(options.threads)
    queue: deque[tuple[Poster, Future[Work | BadImage]]] = deque()
    pending = iter(posters)
    for name in sorted({poster.fill for poster in posters}):
        fills(name)  # fail for an unknown name before the threads start
    with ThreadPoolExecutor(threads, thread_name_prefix="paint") as pool:
        try:
            while True:
                while len(queue) < 2 * max(threads, ahead) and (poster := next(pending, None)) is not None:
                    queue.append((poster, pool.submit(work, poster)))
                if not queue:
                    return
                poster, future = queue.popleft()
                yield poster, future.result()
        finally:
            for _, future in queue:
                future.cancel()
