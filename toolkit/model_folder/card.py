"""Write the model card, README.md of a model folder. Its content depends only on the folder's JSON files.

Hubs show the card as a web page. `plain` escapes Markdown and HTML in names, e.g. in names of genres.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import UserError, printable_line
from shards.storage.files import atomic_write
from toolkit.config.model_files import MetricsFile, read_as, read_config, read_labels
from toolkit.metrics.registry import PLACES, format_number

log = logging.getLogger(__name__)

EVALUATE_AGAIN = "run `posters evaluate` again"
USE = """\
## Use

```
posters predict -m . -i poster.jpg
```

or in Python:

```python
import toolkit

model = toolkit.load_model(".")  # or "hf://user/name" for a model on the hub
print(model.predict(["poster.jpg"]))
```

"""
NEEDS_US = (
    "The command and the Python code need poster-toolkit: run `pip install -c constraints.txt -e .` in its checkout. "
    "Plain timm cannot load this model, because timm does not have this head."
)
#: Markup within a line of Markdown: code, emphasis, links, images, tables, formulas, addresses. An underscore within a
#: word is not markup. Names of architectures contain many such underscores.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)")


def plain(value: object) -> str:
    """Escape a text, so that Markdown shows it unchanged in one line.

    >>> plain("<b>Sci-Fi | R&D</b>")
    '&lt;b&gt;Sci-Fi \\\\| R&D&lt;/b&gt;'
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable_line(str(value)))
    return _MARKDOWN.sub(r"\\\g<0>", text.replace("<", "&lt;").replace(">", "&gt;"))


def write_card(folder: Path) -> None:
    """Write the model card from config.json, labels.json and the metrics-*.json files.

    Metrics of older thresholds or of an older calibration are left out and logged.
    """
    config = msgspec.to_builtins(read_config(folder)[0])
    labels = msgspec.to_builtins(read_labels(folder)[0])
    config["num_classes"] = len(labels["genres"])
    found = dict(metrics_of(folder))
    metrics = {split: values for split, values in found.items() if values["decisions"] == labels["decisions"]}
    for split in found.keys() - metrics.keys():
        command = f"posters evaluate --model {printable_line(str(folder))} --shards SHARDS --split {split}"
        log.warning("metrics-%s.json has older thresholds or calibration: run `%s` again", split, command)
    with atomic_write(folder / "README.md", "w") as stream:
        stream.write(render_card(config, labels, metrics))


def metrics_of(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (split, metrics) of every metrics-SPLIT.json. Invalid files are logged and left out."""
    for path in sorted(folder.glob("metrics-*.json")):
        split = path.stem.removeprefix("metrics-")
        try:
            yield split, msgspec.to_builtins(read_as(path, MetricsFile, "metrics file", EVALUATE_AGAIN)[0])
        except UserError as error:
            log.warning("metrics left out: %s", error)


def render_card(config: dict[str, Any], labels: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> str:
    """Return the card as Markdown, with front matter for model hubs."""
    ours = config["poster_toolkit"]
    cfg = config["pretrained_cfg"]
    head = ours["head"]
    squashed, shape = cfg.get("crop_mode") == "squash", f"resize, centre crop {cfg['crop_pct']:g}"
    average = " (moving average)" if ours.get("weights") == "ema" else ""
    made = "imported by" if ours.get("imported_sha256") else "trained with"
    thresholds = sorted(set(labels["thresholds"]))
    span = f"{thresholds[0]:.3f}" if len(thresholds) == 1 else f"{thresholds[0]:.3f} to {thresholds[-1]:.3f}"
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, multi-label, movie-posters, poster-toolkit]",
        "---",
        f"# {plain(config['architecture'])} for {config['num_classes']} genres",
        "",
        f"A multi-label classifier: {plain(config['architecture'])} with {_head(config)}, {made} poster-toolkit; "
        f"the weights are from epoch {ours['epoch']}{average}.",
        "",
        f"- **Genres** ({plain(labels['fingerprint'])}): {', '.join(map(plain, labels['genres']))}",
        f"- **Thresholds**: {span}, {plain(labels['threshold_source'])}",
        f"- **Calibration**: {_calibration(labels)}",
        f"- **Input**: RGB, {cfg['input_size'][1]}x{cfg['input_size'][2]} pixels "
        f"({'the whole image, stretched to a square' if squashed else shape}), "
        f"mean {list(cfg['mean'])}, std {list(cfg['std'])}",
        f"- **Training data**: shard set {plain(ours['shard_set'])}",
        "",
    ]
    for split, values in metrics.items():
        lines += _metrics_section(split, values, ours["shard_set"])
    plainly = 'The folder loads in plain timm 1.0.26 or newer: `timm.create_model("local-dir:.", pretrained=True)`.'
    return "\n".join([*lines, USE + (plainly if head["kind"] == "linear" else NEEDS_US), ""])


def _head(config: dict[str, Any]) -> str:
    head = config["poster_toolkit"]["head"]
    # other heads have one layer and ignore `hidden`
    hidden = head["hidden"] if head["kind"] in ("mlp", "ensemble") else []
    widths = " → ".join(str(width) for width in [config["num_features"], *hidden, config["num_classes"]])
    return {
        "linear": "a linear head",
        "mlp": f"an mlp head ({widths})",
        "levels": f"a linear head on the last two stages ({widths})",
        "ensemble": f"the mean of {head.get('members')} mlps ({widths}) on the last two stages",
    }.get(head["kind"], f"the head {plain(head['kind'])}, whose code is not in this folder")


def _calibration(labels: dict[str, Any]) -> str:
    method = labels.get("calibration", {"method": "none"})["method"]
    held_out = labels.get("chosen_on", {}).get("held_out", {})
    words = {
        "none": "none",
        "temperature": "temperature scaling per genre, fitted on validation",
        "platt": "Platt scaling per genre, fitted on validation",
    }[method]
    if method not in held_out or "none" not in held_out:
        return words
    if method == "none":
        return f"{words} (calibration did not help clearly on held-out parts of validation)"
    before, after = held_out["none"], held_out[method]
    return (
        f"{words}; on held-out parts of validation: loss {before['loss']:.4f} → {after['loss']:.4f}, "
        f"ECE {before['ece']:.4f} → {after['ece']:.4f}"
    )


def _metrics_section(split: str, values: dict[str, Any], trained_on: str) -> list[str]:
    rows = [f"## Metrics on {plain(split)} ({values['num_samples']} samples)", ""]
    measured_on = values.get("shard_set")  # files of older versions lack the key
    if measured_on and measured_on != trained_on:
        rows += [
            f"Measured on shard set {plain(measured_on)}, **not the shard set of training**. It may contain training "
            "samples.",
            "",
        ]
    shown = PLACES["card"]
    rows += [f"| | {' | '.join(metric.column for metric in shown)} |", "| --- " * (len(shown) + 1) + "|"]
    named = [(f"model @ {row['label']}", row) for row in values["thresholds"]]
    named += [(row["label"], row) for row in values["baselines"]]
    for name, row in named:
        cells = [format_number(row["metrics"].get(metric.key)) for metric in shown]
        rows.append(f"| {plain(name)} | {' | '.join(cells)} |")
    chance = next((row["ranking"] for row in values["baselines"] if row.get("ranking")), None)
    beside = f" (label prevalence: {format_number(chance.get('mAP'))})" if chance else ""
    figures = values["ranking"] | {"loss": values["loss"]}
    ranking = [f"{m.word} {format_number(figures.get(m.key))}{beside * (m.key == 'mAP')}" for m in PLACES["ranking"]]
    rows += ["", ", ".join(ranking) + ".", ""]
    if values.get("calibration"):
        before, after = values["calibration"]["before"], values["calibration"]["after"]
        rows += [
            f"Expected calibration error {after['ece']:.4f} (mean of genres {after['ece_macro']:.4f}); "
            f"before calibration {before['ece']:.4f} ({before['ece_macro']:.4f}).",
            "",
        ]
    return rows
