"""Save the model of another program's checkpoint as a model folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from torch import nn

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.storage.files import sha256_file
from shards.storage.leftovers import remove_dead_partials
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import save_model_folder
from toolkit.models.heads import HeadSpec


@dataclass(frozen=True)
class Imported:
    """A network with its weights, and all other values of a model folder."""

    network: nn.Module
    architecture: str
    head: HeadSpec
    labels: LabelSet
    decisions: Decisions
    preprocessing: Preprocessing
    weights: Path
    """The file with the weights."""
    facts: dict[str, Any]
    """More values for config.json."""
    differences: tuple[str, ...]
    """One line for each difference between the other program and this toolkit."""


def require_new_folder(out: Path) -> None:
    """Raise UserError if the folder exists and has files. Delete the unfinished folders of killed runs beside it."""
    folder = Path(os.path.abspath(out))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            "path-exists", f"--out {out} exists and is not an empty folder: choose another path, or remove it"
        )
    remove_dead_partials(folder.parent, escape(folder.name))


def save_imported(out: Path, found: Imported) -> None:
    """Write the model folder and print what it contains."""
    facts = {**found.facts, "imported_sha256": sha256_file(found.weights)}
    head, labels, decisions, pixels = found.head, found.labels, found.decisions, found.preprocessing
    folder = Path(os.path.abspath(out))
    save_model_folder(folder, found.network.eval(), head, labels, decisions, pixels, facts, {})
    shown = "the whole image" if pixels.fit == "stretch" else f"the central {pixels.crop_pct:g} of the short side"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (pixels.mean, pixels.std))
    print(f"architecture  {found.architecture}, {head.kind} head, {pixels.image_size} pixels")
    print(f"images        {shown}, mean {mean}, std {std}")
    print(f"genres        {len(labels)}: {', '.join(labels.genres)}")
    print(f"thresholds    {decisions.thresholds.min():.3f} to {decisions.thresholds.max():.3f}, {decisions.source}")
    for line in found.differences:
        print(f"difference    {line}")
    print(f"model         {out}")
