"""README.md of a model folder: a pure function of the folder's JSON files, so no number in it is typed by hand.

Names in it come from outside, and hubs show it as a web page: ``plain`` keeps them from being Markdown or HTML.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import UserError, printable_line
from shards.files import atomic_write, read_json
from shards.schema import Count, check_as

log = logging.getLogger(__name__)

#: What means something within a line of Markdown: code, emphasis, links, pictures, tables, formulas, addresses. An
#: underscore within a word means nothing, and names of architectures are full of them.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)")


def plain(value: object) -> str:
    """A text from outside as one line of Markdown that shows it as it is.

    >>> plain("<b>Sci-Fi | R&D</b>")
    '&lt;b&gt;Sci-Fi \\\\| R&D&lt;/b&gt;'
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable_line(str(value)))
    return _MARKDOWN.sub(r"\\\g<0>", text.replace("<", "&lt;").replace(">", "&gt;"))


Numbers = dict[str, float | None]


class _Row(msgspec.Struct):
    label: str
    metrics: Numbers
    ranking: Numbers | None = None


class _Calibration(msgspec.Struct):
    before: Numbers
    after: Numbers


class _Figures(msgspec.Struct):
    """What the card shows of a metrics file (toolkit/report_tables.py writes them)."""

    num_samples: Count
    thresholds: list[_Row]
    baselines: list[_Row]
    ranking: Numbers
    loss: float | None
    calibration: _Calibration | None = None
    shard_set: str | None = None  # files of older versions do not say
    decisions: str | None = None


def write_card(folder: Path) -> None:
    """(Re)write the model card from config.json, labels.json and every metrics-*.json of the present decisions.

    Metrics of other thresholds or another calibration (`posters tune` came after them) are left out and named.
    """
    config = read_json(folder / "config.json", "model config")
    labels = read_json(folder / "labels.json", "labels file")
    found = {}
    for path in sorted(folder.glob("metrics-*.json")):
        try:
            values = read_json(path, "metrics")
            check_as(values, _Figures, path, "metrics file", "delete it")
        except UserError as error:  # the model is as good without: its card says less
            log.warning("left out of the model card: %s", error)
        else:
            found[path.stem.removeprefix("metrics-")] = values
    metrics = {
        split: values for split, values in found.items() if values.get("decisions") == labels.get("decisions")
    }
    for split in found.keys() - metrics.keys():
        log.warning(
            "metrics-%s.json is of other thresholds: run `posters evaluate --split %s` again", split, split
        )
    with atomic_write(folder / "README.md", "w") as stream:
        stream.write(render_card(config, labels, metrics))


def render_card(config: dict[str, Any], labels: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    ours = config["poster_toolkit"]
    cfg = config["pretrained_cfg"]
    head = ours["head"]
    squashed, shape = cfg.get("crop_mode") == "squash", f"resize, centre crop {cfg['crop_pct']:g}"
    average = ", their moving average" if ours.get("weights") == "ema" else ""
    made = "imported by" if "imported_sha256" in ours else "trained with"
    thresholds = sorted(set(labels["thresholds"]))
    span = f"{thresholds[0]:.3f}" if len(thresholds) == 1 else f"{thresholds[0]:.3f} to {thresholds[-1]:.3f}"
    architecture = plain(config["architecture"])
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, multi-label, movie-posters, poster-toolkit]",
        "---",
        f"# {architecture} for {plain(config['num_classes'])} genres",
        "",
        f"A multi-label classifier: {architecture} with {plain(_head(config))}, {made} poster-toolkit; "
        f"the weights are those of epoch {plain(ours['epoch'])}{average}.",
        "",
        f"- **Genres** ({plain(labels['fingerprint'])}): {', '.join(map(plain, labels['genres']))}",
        f"- **Thresholds**: {span}, {plain(labels['threshold_source'])}",
        f"- **Calibration**: {_calibration(labels)}",
        f"- **Input**: RGB, {plain(cfg['input_size'][1])}x{plain(cfg['input_size'][2])} pixels "
        f"({'the whole image, made a square' if squashed else shape}), "
        f"mean {_listed(cfg['mean'])}, std {_listed(cfg['std'])}",
        f"- **Training data**: shard set {plain(ours['shard_set'])}",
        "",
    ]
    for split, values in metrics.items():
        lines += _metrics_section(split, values, ours["shard_set"])
    return "\n".join([*lines, *_use_section(head["kind"])])


def _use_section(head: str) -> list[str]:
    lines = ["## Use", "", "```", "posters predict -m . -i poster.jpg", "```", "", "or in Python:", ""]
    lines += [
        "```python",
        "import toolkit",
        "",
        'model = toolkit.load_model(".")  # or "hf://user/name" of one on the hub',
        'print(model.predict(["poster.jpg"]))',
        "```",
        "",
    ]
    if head == "linear":
        return [
            *lines,
            'The folder loads in plain timm: `timm.create_model("local-dir:.", pretrained=True)`.',
            "",
        ]
    return [
        *lines,
        "Both need poster-toolkit: `pip install -c constraints.txt -e .` in its checkout. Plain timm does not know "
        "this head; `toolkit.load_model` puts it back.",
        "",
    ]


def _head(config: dict[str, Any]) -> str:
    head = config["poster_toolkit"]["head"]
    # the other kinds have one layer, whatever is written
    hidden = head["hidden"] if head["kind"] in ("mlp", "ensemble") else []
    widths = " → ".join(str(width) for width in [config["num_features"], *hidden, config["num_classes"]])
    return {
        "linear": "a linear head",
        "mlp": f"an mlp head ({widths})",
        "levels": f"a linear head on its last two stages ({widths})",
        "ensemble": f"the mean of {head.get('members')} mlps ({widths}) on its last two stages",
    }[head["kind"]]


def _calibration(labels: dict[str, Any]) -> str:
    method = labels.get("calibration", {"method": "none"})["method"]
    held_out = labels.get("chosen_on", {}).get("held_out", {})
    words = {
        "none": "none",
        "temperature": "temperature scaling per genre, fitted on validation",
        "platt": "Platt scaling per genre, fitted on validation",
    }[method]
    if method not in held_out:
        return words
    if method == "none":
        return f"{words} (it did not help on held-out parts of validation)"
    before, after = held_out["none"], held_out[method]
    return (
        f"{words}; on held-out parts of it loss {before['loss']:.4f} → {after['loss']:.4f}, "
        f"ECE {before['ece']:.4f} → {after['ece']:.4f}"
    )


def _metrics_section(split: str, values: dict[str, Any], trained_on: str) -> list[str]:
    figures = msgspec.convert(values, _Figures)
    rows = [f"## Metrics on {plain(split)} ({figures.num_samples} samples)", ""]
    if figures.shard_set and figures.shard_set != trained_on:
        rows += [
            f"Measured on shard set {plain(figures.shard_set)}, **not the one of training**: samples of that training "
            "may be among these.",
            "",
        ]
    rows += [
        "| | precision | recall | micro-F1 | macro-F1 | F0.5 | subset accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    named = [(f"model @ {row.label}", row.metrics) for row in figures.thresholds]
    named += [(row.label, row.metrics) for row in figures.baselines]
    keys = ("micro_precision", "micro_recall", "micro_f1", "macro_f1", "micro_f0.5", "subset_accuracy")
    for name, metrics in named:
        rows.append(f"| {plain(name)} | " + " | ".join(_number(metrics.get(key)) for key in keys) + " |")
    ranking = figures.ranking
    chance = next((row.ranking for row in figures.baselines if row.ranking), None)
    beside = f" (label prevalence: {_number(chance.get('mAP'))})" if chance else ""
    rows += [
        "",
        f"mAP {_number(ranking.get('mAP'))}{beside}, ROC-AUC {_number(ranking.get('roc_auc'))}, "
        f"loss {_number(figures.loss)}.",
        "",
    ]
    if figures.calibration is not None:
        before, after = ((_number(n.get("ece"), 4), _number(n.get("ece_macro"), 4))
                         for n in (figures.calibration.before, figures.calibration.after))  # fmt: skip
        rows += [
            f"Expected calibration error {after[0]} (mean of genres {after[1]}); "
            f"before calibration {before[0]} ({before[1]}).",
            "",
        ]
    return rows


def _listed(values: Any) -> str:
    """``[0.5, 0.5, 0.5]``, whose brackets are ours."""
    return f"[{', '.join(map(plain, values))}]"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
