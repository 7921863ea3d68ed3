"""The result of an audit: one dictionary for audit.json, and one row per poster for audit.csv.

The screen (tables.py), the page (templates/) and the sheet of pictures (contact_sheet.py) show the same dictionary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shards.storage.files import write_json
from shards.visuals.links import page_of, subject_of, write_page
from shards.visuals.templates import render
from toolkit.audit.contact_sheet import Example, save_sheet, thumbnail
from toolkit.audit.effects import (
    CLEANED,
    CONTROLS,
    FEW_POSTERS,
    RAW,
    REENCODED,
    Effect,
    amount,
    control_effect,
    effect,
    genre_table,
    is_noise,
    label_metrics,
    posters,
    ratio_of_means,
    sentence,
)
from toolkit.audit.images import make_pictures
from toolkit.audit.options import AuditOptions
from toolkit.audit.overview import overview
from toolkit.audit.run import Audited, Chosen, FillMaker
from toolkit.audit.tables import EFFECT_COLUMNS, EFFECT_NAMES, GENRE_COLUMNS, METRIC_NAMES
from toolkit.evaluation.tables import json_types, write_table
from toolkit.metrics.helpers import sigmoid
from toolkit.metrics.registry import PLACES
from toolkit.model_folder.folder import ModelFolder
from toolkit.report.glossary import GLOSSARY
from toolkit.report.run import run_names

#: Maximum numbers of posters with pictures: on the page, in audit.png, and on the first screen of the page.
POSTERS_IN_RESULTS, POSTERS_ON_SHEET, FIRST_POSTERS = 24, 6, 3
#: Smaller changes of a probability are 0.0000 in the table of genres.
SHOWN = 0.00005
#: Section of the page → title.
TITLES = {
    "effects": "Changes of the predictions",
    "genres": "Effect of titles per genre",
    "metrics": "Metrics with and without text",
    "posters": "More posters with large effects",
    "facts": "Model and data",
}
#: Number of genres that are listed under a poster with pictures.
GENRES_PER_POSTER = 4
HISTOGRAM_BINS = 24


def build_report(
    folder: ModelFolder,
    chosen: Chosen,
    audited: Audited,
    options: AuditOptions,
    fills: FillMaker,
    targets: dict[str, np.ndarray] | None = None,
) -> tuple[dict[str, Any], list[Example]]:
    """Return the report in JSON types, and example posters. With ``targets`` (id → (G,) bool labels), add metrics."""
    compared, logits = audited.compared, audited.logits
    fair = logits[compared]
    every = {
        "text": effect(logits[:, RAW], logits[:, CLEANED], folder.thresholds),
        "control": control_effect(logits, folder.thresholds),
        "reencoding": effect(logits[:, RAW], logits[:, REENCODED], folder.thresholds),
    }
    effects = {name: values.take(compared) for name, values in every.items()}
    ratio = ratio_of_means(effects["text"].change, effects["control"].change, options.seed)
    rows = np.flatnonzero(compared) if compared.any() else np.arange(len(logits))
    top = rows[np.argsort(-every["text"].change[rows], kind="stable")[:POSTERS_IN_RESULTS]]
    table = genre_table(fair, folder.thresholds, folder.labels.genres) if len(fair) else None
    report: dict[str, Any] = {
        "sentence": sentence(ratio),
        "overview": overview(ratio, effects, options.seed),
        "notes": [],
        "made": date.today().isoformat(),
        "ratio": asdict(ratio),
        "ratio_of_logits": asdict(
            ratio_of_means(effects["text"].logit_change, effects["control"].logit_change, options.seed)
        ),
        "effects": {name: values.means() for name, values in effects.items()},
        "text_effect_on_all_audited": every["text"].means(),
        "histogram": _histogram(effects["text"].change, effects["control"].change),
        "genres": [] if table is None else table.to_dict("records"),
        "metrics": _metrics(audited, targets, folder),
        "counts": _counts(chosen, audited),
        "areas": _areas(audited),
        "command": _command(folder, audited, options),
        "examples": [_example(audited, row, every, folder) for row in top],
        "left_out": [asdict(rejection) for rejection in audited.left_out],
        "posters": _rows(audited, every, folder),
    }
    report = json_types(report)
    report["notes"] = _notes(report)
    # Make the pictures again, since the pictures of all posters do not fit into memory.
    examples = []
    for row, facts in zip(top, report["examples"], strict=True):
        poster = audited.posters[row]
        pictures = make_pictures(poster, options, folder.preprocessing, fills(poster.fill)).images
        shown = [thumbnail(pictures[kind]) for kind in (RAW, CLEANED, CONTROLS)]
        examples.append(Example(facts, *shown))
    return report, examples


def _command(folder: ModelFolder, audited: Audited, options: AuditOptions) -> dict[str, Any]:
    return {
        "model": str(folder.path),
        "model_fingerprint": folder.fingerprint,
        "labels_fingerprint": folder.labels.fingerprint,
        "genres": folder.labels.genres,
        "thresholds": folder.thresholds,
        "images": str(options.images),
        "cleaned": str(options.cleaned),
        "seed": options.seed,
        "controls": options.controls,
        "limit": options.limit,
        "fills": dict(Counter(poster.fill for poster in audited.posters)),
    }


def write_report(folder: Path, report: dict[str, Any], examples: Sequence[Example]) -> None:
    """Write audit.csv, audit.png and audit.html, then audit.json."""
    write_table(folder / "audit.csv", pd.DataFrame(report["posters"]))
    save_sheet(folder / "audit.png", report, examples[:POSTERS_ON_SHEET])
    write_page(folder / "audit.html", page(report, examples))
    # The rows per poster are only in audit.csv, since a JSON file with 90,000 rows is hard to open.
    write_json(folder / "audit.json", {name: value for name, value in report.items() if name != "posters"})


def page(report: dict[str, Any], examples: Sequence[Example]) -> str:
    """Return the report as one HTML page. It contains pictures as data URIs and a chart as SVG."""
    metrics = {metric.key: metric.column for metric in PLACES["audit"]}
    command = report["command"]
    facts = {name: value for name, value in command.items() if name not in ("genres", "thresholds")}
    facts = {name: value for name, value in (facts | report["counts"]).items() if value not in (None, 0, {})}
    first, rest = examples[:FIRST_POSTERS], examples[FIRST_POSTERS:]
    has = {"genres": report["genres"], "metrics": report["metrics"], "posters": rest}
    return render(
        "toolkit.audit/audit.html",
        page_of=page_of("Audit", command["model_fingerprint"], subject_of(Path(command["cleaned"]))),
        report=report,
        first=first,
        rest=rest,
        model=run_names(Path(command["model"]))[0],
        moved=[row for row in report["genres"] if max(row["text"], row["control"]) >= SHOWN],
        facts=facts,
        posters=posters,
        glossary=GLOSSARY,
        sections=[pair for pair in TITLES.items() if has.get(pair[0], True)],
        columns={"effects": EFFECT_COLUMNS, "genres": GENRE_COLUMNS, "metrics": metrics},
        names={"effects": EFFECT_NAMES, "metrics": METRIC_NAMES},
    )


def _example(audited: Audited, row: int, effects: dict[str, Effect], folder: ModelFolder) -> dict[str, Any]:
    probabilities = sigmoid(audited.logits[row])
    raw, cleaned, control = probabilities[RAW], probabilities[CLEANED], probabilities[CONTROLS]
    named = raw >= folder.thresholds
    order = np.argsort(-np.abs(cleaned - raw), kind="stable")[:GENRES_PER_POSTER]
    return {
        "id": audited.posters[row].id,
        "text": effects["text"].change[row],
        "control": effects["control"].change[row],
        "area": audited.areas[row].text,
        "changes": [
            {
                "genre": folder.labels.genres[column],
                "raw": raw[column],
                "cleaned": cleaned[column],
                "control": control[column],
                "flipped": bool(named[column] != (cleaned[column] >= folder.thresholds[column])),
            }
            for column in order
        ],
    }


def _rows(audited: Audited, effects: dict[str, Effect], folder: ModelFolder) -> dict[str, Any]:
    text, control, noise = effects["text"], effects["control"], effects["reencoding"]
    return {
        "id": [poster.id for poster in audited.posters],
        "not_compared": [area.problem() for area in audited.areas],
        **{f"area_{name}": [vars(area)[name] for area in audited.areas] for name in vars(audited.areas[0])},
        "text_change": text.change,
        "control_change": control.change,
        "reencoding_change": noise.change,
        "text_logit_change": text.logit_change,
        "control_logit_change": control.logit_change,
        "text_largest": text.largest,
        "text_largest_genre": [folder.labels.genres[column] for column in text.genre],
        "control_largest": control.largest,
        "text_flips": text.flips,
        "control_flips": control.flips,
        "reencoding_flips": noise.flips,
    }


def _metrics(audited: Audited, targets: dict[str, np.ndarray] | None, folder: ModelFolder) -> dict[str, Any] | None:
    if targets is None:
        return None
    truth = [targets[poster.id] for poster in audited.posters]
    rows = [row for row in np.flatnonzero(audited.compared) if truth[row].any()]
    if not rows:
        return None
    chosen = np.stack([truth[row] for row in rows])
    return {"posters": len(rows), **label_metrics(chosen, audited.logits[rows], folder.thresholds)}


def _counts(chosen: Chosen, audited: Audited) -> dict[str, Any]:
    problems = Counter(area.problem() for area in audited.areas)
    compared = problems.pop("", 0)
    return {
        **chosen.counts,
        "audited": len(audited.posters),
        "compared": compared,
        "not_compared": dict(problems),
        "left_out": dict(Counter(rejection.reason for rejection in audited.left_out)),
        "draws": (audited.logits.shape[1] - CONTROLS) * len(audited.posters),
        "crowded_draws": sum(area.crowded for area in audited.areas),
    }


def _areas(audited: Audited) -> dict[str, Any]:
    fair = [area for area in audited.areas if not area.problem()]
    if not fair:
        return {}
    return {
        "text": np.mean([area.text for area in fair]),
        "text_in_view": np.mean([area.text_in_view for area in fair]),
        "control": np.mean([area.control for area in fair]),
        "least_control": min(area.control for area in fair),
        "control_in_view": np.mean([area.control_in_view for area in fair]),
    }


def _histogram(text: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Return histograms of the effects of text and control, with equal bins. The last bin has all larger effects."""
    if not len(text):
        return {"edges": [], "text": [], "control": []}
    top = max(float(np.quantile(text, 0.99)), float(np.quantile(control, 0.99)), 1e-6)
    edges = np.linspace(0.0, top, HISTOGRAM_BINS + 1)
    counts = [np.histogram(np.minimum(values, top), edges)[0] for values in (text, control)]
    return {"edges": edges, "text": counts[0], "control": counts[1]}


def _notes(report: dict[str, Any]) -> list[str]:
    counts, areas, effects = report["counts"], report["areas"], report["effects"]
    notes = []
    if counts["compared"]:
        noise, text = effects["reencoding"]["probability"], effects["text"]["probability"]
        notes.append(
            f"Re-encoding alone moves a probability by {amount(noise)}. The effects of the text ({amount(text)}) "
            f"and of the control ({amount(effects['control']['probability'])}) include this change."
        )
        if is_noise(text, noise):
            notes.append("The effect of the text is mostly noise: less than 1.5 times the effect of re-encoding.")
        notes.append(
            f"Text covers {areas['text']:.1%} of a poster on average. The model's input contains "
            f"{areas['text_in_view']:.0%} of this area. The area of the control inside the input is "
            f"{areas['control_in_view']:.0%} of the text's area."
        )
        equal = math.isclose(areas["least_control"], 1.0)
        least = "the same" if equal else f"at least {areas['least_control']:.0%}"
        average = f"The control's area is {areas['control']:.1%} of the text's area on average"
        notes.append(f"{average}, and {least} on every poster.")
        if counts["compared"] < FEW_POSTERS:
            notes.append(f"With fewer than {FEW_POSTERS} posters, intervals are often too narrow.")
    if counts["crowded_draws"]:
        notes.append(
            f"In {counts['crowded_draws']} of {counts['draws']} controls, a region has no free place off the text. "
            "This region is at the place with the smallest overlap, and its overlap with text is not painted."
        )
    for reason, count in counts["not_compared"].items():
        notes.append(f"Not compared: {posters(count)} ({reason}).")
    for reason, count in counts["left_out"].items():
        notes.append(f"Left out: {posters(count)} ({reason}); audit.json lists them.")
    return notes
