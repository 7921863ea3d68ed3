"""Check cleaned posters with RapidOCR, on enlarged copies and with lower thresholds than cleaning uses.

This check is called the referee. It uses the same network as cleaning, but RapidOCR's own code prepares the picture and
computes the boxes. Boxes of every size count. As in cleaning, a line of known text is added below the picture.
Without this line, the network marks objects as text in pictures without text (see reference_strip.py).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from shards.errors import UserError
from shards.executors.chunks import results_in_order, split_into_chunks
from shards.executors.local import LocalExecutor, WorkersOption
from shards.extras import require_extra
from shards.inputs.image_files import no_folder, read_image_file
from shards.inputs.images import BadImage, ImageOptions, decode
from shards.options import option
from shards.text.masks import mask_of
from shards.text.opencv import cv2
from shards.text.reference_strip import reference_strip, strip_height
from shards.text.report import read_report
from shards.values import BetweenZeroAndOne, Checked, between, or_more

CHUNK = 8  # posters per task
ANY = ImageOptions(min_side=1, max_pixels=1 << 40)  # cleaning has already decided which posters are accepted
CLEAN_ENOUGH = 0.1  # a poster passes if at most this share of its text area is left


@dataclass(frozen=True)
class RefereeOptions(Checked):
    """Settings of the detector that checks cleaned posters."""

    side: Annotated[int, between(64, 4096, "from 64 to 4096 pixels")] = 1152
    """Short side, in pixels, of the copy in which text is searched."""
    pixel_threshold: BetweenZeroAndOne = 0.15
    """A pixel counts as text if its probability is above this value. Cleaning uses 0.2 by default."""
    region_threshold: BetweenZeroAndOne = 0.25
    """A region counts as text if its mean probability is at least this value. Cleaning uses 0.3 by default."""
    reference_strip: bool = option(True, old=("--anchor",))
    """Add a line of known text below the picture, which reduces false detections in pictures without text."""


@dataclass(frozen=True)
class RefereeCommand(WorkersOption):
    """Options of ``posters referee``."""

    images: Path
    """Folder of raw posters."""
    cleaned: Path
    """Folder made by `posters clean`."""
    sample: Annotated[int, or_more("all")] = 0
    """Number of posters to check (0: all). A hash of the ids decides which posters are checked."""
    referee: RefereeOptions = field(default_factory=RefereeOptions)
    json: Path | None = None
    """Write all results to this JSON file."""


@dataclass(frozen=True)
class RefereeTask:
    """A chunk of posters to check in the raw and in the cleaned folder."""

    raw: Path
    cleaned: Path
    ids: tuple[str, ...]
    options: RefereeOptions

    def __len__(self) -> int:
        return len(self.ids)


def text_area(image: np.ndarray, options: RefereeOptions) -> np.ndarray:
    """Find text in an (h, w, 3) uint8 RGB image. Return an (h, w) bool mask of the boxes with text."""
    height, width = image.shape[:2]
    scale = options.side / min(height, width)
    size = round(width * scale), round(height * scale)
    copy = cv2().resize(image, size, interpolation=cv2().INTER_CUBIC)
    if options.reference_strip:
        copy = np.concatenate([copy, reference_strip(size[0], strip_height(options.side))])
    found = _engine(options)(np.ascontiguousarray(copy[..., ::-1]), use_det=True, use_cls=False, use_rec=False)
    boxes = () if found.boxes is None else found.boxes
    return mask_of([np.rint(np.asarray(box) / scale) for box in boxes], (height, width))


def measure_chunk(task: RefereeTask) -> list[tuple[str, float, float]]:
    """Return (id, share of text before cleaning, share of text after cleaning) for each poster."""
    answer = []
    for sample_id in task.ids:
        shares = []
        for folder in (task.raw, task.cleaned):
            try:
                image = decode(read_image_file(folder, sample_id), ANY)
            except BadImage as bad:
                message = f"poster {sample_id} in {folder} cannot be checked: {bad.reason} {bad.detail}"
                raise UserError("image-unreadable", message) from None
            shares.append(float(text_area(np.asarray(image), task.options).mean()))
        answer.append((sample_id, shares[0], shares[1]))
    return answer


def compare_text(raw: Path, clean: Path, options: RefereeOptions, sample: int = 0, workers: int = 0) -> dict[str, Any]:
    """Measure the text of ``sample`` posters before and after cleaning (0: all posters). Return the results."""
    if not raw.is_dir():
        raise no_folder(raw)
    report = read_report(clean)
    cv2()  # fail at the start if a package is missing
    _engine(options)
    ids = sorted(report["id"], key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    ids = ids[: sample or None]
    if not ids:
        raise UserError("images-none", f"{clean} contains no cleaned poster")
    tasks = [RefereeTask(raw, clean, part, options) for part in split_into_chunks(ids, CHUNK)]
    found = itertools.chain(*results_in_order(LocalExecutor(workers), measure_chunk, tasks, "checking posters"))
    checked = report.set_index("id").loc[ids]
    return {
        "referee": {key if key != "reference_strip" else "anchor": value for key, value in asdict(options).items()},
        "cleaning": report.attrs["text_removal"],
        "altered_median": float(checked["altered"].median()),
        "seconds_mean": float(checked["seconds"].mean()),
        **summary(sorted(found)),
    }


def summary(found: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Summarize the tuples that ``measure_chunk`` returns."""
    before, after = (np.array([row[column] for row in found]) for column in (1, 2))
    worst = sorted(found, key=lambda row: (-row[2], row[0]))[:20]
    return {
        "posters": len(found),
        "posters_with_text": int((before > 0).sum()),
        "text_before_mean": float(before.mean()),
        "text_after_mean": float(after.mean()),
        "text_after_of_before": float(after.sum() / before.sum()) if before.sum() else 0.0,
        # a poster without text after cleaning always counts as clean enough
        "clean_enough": float((after <= CLEAN_ENOUGH * before).mean()),
        "worst": [{"id": row[0], "before": row[1], "after": row[2]} for row in worst if row[2] > 0],
    }


@cache
def _engine(options: RefereeOptions) -> Any:
    engine = require_extra("clean", "the referee", "rapidocr").RapidOCR(
        params={
            "Global.log_level": "error",  # RapidOCR logs a warning for every picture without text
            "Global.max_side_len": 1 << 14,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_side_len": options.side,
            "Det.thresh": options.pixel_threshold,
            "Det.box_thresh": options.region_threshold,
        }
    )
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return engine
