"""Options of ``posters evaluate`` and ``tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shards.dataset.cache_options import SetOptions
from shards.errors import UserError
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from shards.values import check_rules, flag
from toolkit.config.extensions import is_place, use
from toolkit.config.model_files import model_folder_of
from toolkit.config.options import ModelOption, PassOptions, parse_options
from toolkit.config.schema import DecideConfig
from toolkit.inference.naming import parse_thresholds as parse_thresholds_of


def parse_thresholds(text: str) -> list[float]:
    """Convert "0.3,0.5" to [0.3, 0.5]. Raises UserError for other texts and for numbers outside [0, 1]."""
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise UserError("option-value", f"--thresholds takes numbers from 0 to 1 such as 0.3,0.5, not {text!r}")
    return values


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOption, SetOptions, PassOptions):
    """Options of ``posters evaluate``."""

    split: str = "test"
    """Split to evaluate."""
    thresholds: list[float] = option(factory=lambda: [0.3, 0.5, 0.7], parse=parse_thresholds, text="0.3,0.5,0.7")
    """Fixed thresholds. Metrics are shown at these thresholds and at the model's own thresholds."""
    metric: str | None = option(None, metavar="MODULE:CLASS")
    """Also measure a metric of your own."""
    metric_options: dict[str, Any] | None = option(
        None, metavar="NAME=VALUE", several="words", parse=partial(parse_options, flag="--metric-options")
    )
    """Options of your own metric."""
    out: Path | None = option(None, "-o")
    """JSON file for the metrics (default MODEL/metrics-SPLIT.json)."""
    report: Path | None = option(None, metavar="DIR")
    """Write a page with plots and posters to DIR/index.html."""
    compare: Path | None = option(None, metavar="RUN2", parse=model_folder_of)
    """Folder of another run or model. The report compares both models and tests the difference."""
    label_errors: bool | None = None
    """List likely label errors in the report (default: true if cleanlab is installed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix.lower() not in ("", ".json"):
            raise UserError(
                "option-value", f"--out {self.out} must end in .json. The predictions are written beside it as .npz"
            )
        if self.metric is not None and not is_place(self.metric):
            raise UserError("option-value", f"--metric must be MODULE:CLASS, not {self.metric[:200]!r}")
        if self.metric is not None:
            use("metric", self.metric, "--metric")
        elif self.metric_options:
            raise UserError("option-missing", "--metric-options needs --metric MODULE:CLASS")


def parse_set(texts: Sequence[str]) -> dict[str, float]:
    """Convert texts such as ``Drama=0.5`` to a mapping from genre to threshold. Raises UserError for other texts."""
    return parse_thresholds_of(texts, "--set", common=False)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ModelOption, SetOptions, PassOptions):
    """Options of ``posters tune``."""

    shards: StoragePath | None = option(None, parse=storage_path)  # type: ignore[assignment]
    """Shard set: a folder or URL (s3://, gs://, hf://, http://). It is optional only with --set."""
    by_hand: Mapping[str, float] | None = option(
        None, "--set", metavar="GENRE=NUMBER", several="times", parse=parse_set
    )
    """Set the threshold of one genre in the model by hand, such as Drama=0.5, and keep the other thresholds. No
    shard set is needed. You can give this option several times. A later `posters tune` without --set chooses all
    thresholds."""
    decide: DecideConfig = field(default_factory=DecideConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rules(self.decide, flag)
        if self.by_hand is None and self.shards is None:
            remedy = "name a shard set, or set a threshold by hand with --set GENRE=NUMBER"
            raise UserError("option-missing", f"--shards is missing: {remedy}")
        if self.by_hand is not None and (self.shards is not None or self.decide != DecideConfig()):
            raise UserError(
                "option-conflict",
                "--set chooses no thresholds on a shard set; run `posters tune` with --shards and your options first, "
                "then `posters tune --set`",
            )
