"""Material for reports without a network: drawn posters, and logits that know something of the genres."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from shards.dataset.labels import LabelSet
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import OWN_KEY, ModelFolder
from toolkit.report.build import Report
from toolkit.report.inputs import ModelOutputs, ReportInputs
from toolkit.report.plots.common import Plot

#: What users may call a genre.
NASTY = '<b>&"'
GENRES = ["Comedy", "Drama", NASTY, "$x_1$ Sci-Fi", "War"]
PREVALENCE = np.array([0.5, 0.6, 0.25, 0.1, 0.0])
SAMPLES = 120
PREPROCESSING = Preprocessing(64, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CONFIG: dict[str, Any] = {
    "architecture": "resnet50",
    OWN_KEY: {
        "weights_sha256": "ab" * 32,
        "epoch": 2,
        "shard_set": "0123456789abcdef",
        "training_config": {"data": {"crop": [0.5, 1.0]}},
    },
}


def simulate(seed: int = 0, skill: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """(targets, logits); no sample has the last genre."""
    rng = np.random.default_rng(seed)
    targets = rng.random((SAMPLES, len(GENRES))) < PREVALENCE
    noise = rng.normal(size=targets.shape)
    return targets, skill * (noise + targets - 0.5) + np.log((PREVALENCE + 0.01) / (1.01 - PREVALENCE))


def picture(sample: int) -> bytes:
    """A JPEG of a colour of its own; sample 3 is none."""
    if sample == 3:
        return b"no picture"
    noise = np.random.default_rng(sample).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=95)
    return out.getvalue()


def said(logits: np.ndarray, decisions: Decisions, name: str = "run", path: Path = Path("run/model")) -> ModelOutputs:
    """What a model with these logits and decisions says."""
    return ModelOutputs(
        name, ModelFolder(nn.Module(), LabelSet(tuple(GENRES)), decisions, PREPROCESSING, CONFIG, path), logits
    )


def trained_on(said: ModelOutputs, shard_set: str | None, **facts: Any) -> ModelOutputs:
    """The same model with another training: config.json's ``shard_set`` and more of its facts."""
    config = {**said.folder.config, OWN_KEY: said.ours | {"shard_set": shard_set} | facts}
    return replace(said, folder=replace(said.folder, config=config))


def decisions(calibrated: bool = True) -> Decisions:
    """One threshold per genre, and a calibration that changes something."""
    scale = np.full(len(GENRES), 0.6 if calibrated else 1.0)
    return Decisions(
        np.array([0.4, 0.5, 0.3, 0.2, 0.5]),
        scale,
        np.zeros(len(GENRES)),
        0.45,
        calibration="temperature" if calibrated else "none",
        source="one per genre, made up",
    )


def inputs(*, other: bool = True, split: str = "test", seed: int = 0, path: Path = Path("run/model")) -> ReportInputs:
    """Everything that a report is about."""
    targets, logits = simulate(seed)
    worse = np.random.default_rng(9).permutation(logits)  # knows what is common, and nothing of the samples
    return ReportInputs(
        split,
        GENRES,
        targets,
        [f"<i>{row}&" for row in range(SAMPLES)],
        picture,
        np.maximum(PREVALENCE, 0.001),
        said(logits, decisions(), path=path),
        said(worse, decisions(False), "run 2 <u>") if other else None,
        {"shard set": "shards", "shard set fingerprint": "0123456789abcdef", "labels fingerprint": "0"},
        "posters evaluate --model 'run/<s>'",
    )


def all_plots(report: Report) -> list[Plot]:
    """Every plot, those of the genres too."""
    of_genres = (plot for plot, _ in [*report.curves, *report.diagrams])
    return [*report.plots.values(), *of_genres, *report.training_plots]
