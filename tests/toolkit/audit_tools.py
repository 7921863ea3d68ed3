"""What the tests of ``posters audit`` share: sets of drawn posters, models that read or do not, a whole audit.

Only for modules that have made sure of OpenCV (``pytest.importorskip("cv2")``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from shards.dataset.labels import LabelSet
from shards.text.masks import outlines
from shards.text.registry import make_fill
from shards.text.report import NAME as REPORT
from shards.text.report import write_report
from toolkit.audit.options import AuditOptions
from toolkit.audit.results import build_report
from toolkit.audit.run import Audited, audit_posters, fill_maker
from toolkit.audit.selection import choose_posters, read_posters
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import ModelFolder

SIZE = 64
SHAPE = (96, 64)
GENRES = ("Comedy", "Drama", "Horror")
Folders = tuple[Path, Path]
PREPROCESSING = Preprocessing(SIZE, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def write_set(
    folder: Path, masks: dict[str, np.ndarray], draw: Callable[[str, np.random.Generator], np.ndarray]
) -> Folders:
    """Raw posters, and what `posters clean` would make of them, masks being known."""
    raw, cleaned = folder / "raw", folder / "cleaned"
    raw.mkdir(parents=True)
    cleaned.mkdir()
    paint = make_fill("surround")
    rows: list[dict[str, Any]] = []
    for number, (name, mask) in enumerate(masks.items()):
        pixels = draw(name, np.random.default_rng(number))
        Image.fromarray(pixels).save(raw / f"{name}.png")
        Image.fromarray(paint(pixels, mask)).save(cleaned / f"{name}.jpg", quality=95, subsampling=0)
        rows.append(
            {
                "id": name,
                "width": mask.shape[1],
                "height": mask.shape[0],
                "altered": float(mask.mean()),
                "fill": "surround",
                "polygons": outlines(mask),
            }
        )
    write_report_file(cleaned, rows)
    return raw, cleaned


def write_report_file(cleaned: Path, rows: list[dict[str, Any]]) -> None:
    """As `posters clean` does; what the audit does not read is as it would be for untouched posters."""
    rest = {
        "passes": 1,
        "boxes_before": 1,
        "boxes_after": 0,
        "text_before": 0.1,
        "text_after": 0.0,
        "seconds": 0.0,
        "skipped": [],
        "skipped_polygons": [],
    }
    write_report(cleaned / REPORT, [rest | row for row in rows], {"fill": "surround"})


def box(top: int, left: int, tall: int, wide: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[top : top + tall, left : left + wide] = True
    return mask


class Reader(nn.Module):
    """Its logits depend on the contrast inside the title's box alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        title = images[:, :, 15:23, 12:48].std(dim=(1, 2, 3))  # rows 31 to 39 of the poster
        return torch.stack([4 * title - 2, -4 * title, title * 0], dim=1)


class Mean(nn.Module):
    """Its logits depend on the mean of all that it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([5 * mean, -3 * mean, mean], dim=1)


class Blind(nn.Module):
    """Always the same."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, -1.0, 0.0]]).expand(len(images), 3)


def folder_of(model: nn.Module) -> ModelFolder:
    config = {"poster_toolkit": {"weights_sha256": "0" * 64}}
    decisions = Decisions.plain(np.full(3, 0.5))
    return ModelFolder(model, LabelSet(GENRES), decisions, PREPROCESSING, config, Path("model"))


def titled(_: str, rng: np.random.Generator) -> np.ndarray:
    """A gradient with black and white bars where the title is."""
    base = np.linspace(60, 180, SHAPE[0])[:, None, None] + rng.integers(0, 40, 3)
    pixels = np.broadcast_to(base, (*SHAPE, 3)).astype(np.uint8).copy()
    pixels[31:39, 12:48] = np.where(np.arange(36) // 3 % 2, 255, 0)[None, :, None]
    return pixels


def patches(_: str, rng: np.random.Generator) -> np.ndarray:
    """Grey squares: every place looks like every other."""
    grey = rng.integers(0, 256, (SHAPE[0] // 8, SHAPE[1] // 8))
    return np.repeat(np.repeat(grey, 8, 0), 8, 1)[..., None].repeat(3, axis=2).astype(np.uint8)


def write_titles(folder: Path) -> Folders:
    """Posters whose title is where Reader reads."""
    return write_set(folder, {f"p{number:02d}": box(30, 10, 10, 40) for number in range(12)}, titled)


def write_anywhere(folder: Path) -> Folders:
    """Posters whose "text" is a square like any other, at a random place."""
    rng = np.random.default_rng(1)
    masks = {f"p{n:02d}": box(int(rng.integers(20, 64)), int(rng.integers(0, 49)), 16, 16) for n in range(60)}
    return write_set(folder, masks, patches)


def settings_of(folders: Folders, **options: Any) -> AuditOptions:
    images, cleaned = folders
    return AuditOptions(model=Path("unused"), images=images, cleaned=cleaned, **{"threads": 1, **options})


def audit(
    model: nn.Module, folders: Folders, targets: dict[str, np.ndarray] | None = None, **options: Any
) -> tuple[Audited, dict[str, Any], list[Any]]:
    folder = folder_of(model)
    settings = settings_of(folders, **{"controls": 2, **options})
    chosen = choose_posters(read_posters(folders[1]), settings, targets)
    audited = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    return audited, *build_report(folder, chosen, audited, settings, fill_maker(None), targets)
