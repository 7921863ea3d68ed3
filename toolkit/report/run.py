"""Steps of `posters evaluate --report DIR`: check options, run the model of --compare, write the report on rank 0."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from accelerate import Accelerator

from shards.dataset.labels import require_same
from shards.dataset.manifest import Manifest
from shards.dataset.store import ShardStore, open_store
from shards.errors import UserError, without_secrets
from shards.extras import require_extra
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.evaluation.evaluate import baseline_prevalence, warn_of_another_set
from toolkit.evaluation.options import EvaluateOptions
from toolkit.inference.split_outputs import SplitLogits, infer_split
from toolkit.metrics.registry import Metric
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.report.build import Report, build_report
from toolkit.report.inputs import FINGERPRINT, ModelOutputs, ReportInputs
from toolkit.report.label_errors import have_cleanlab
from toolkit.report.output import check_report_folder, write_report


@dataclass(frozen=True)
class ReportRun:
    """A requested report. Its inputs are checked before the evaluation starts."""

    folder: Path
    model: ModelFolder
    other: ModelFolder | None
    shards: ShardStore
    manifest: Manifest
    label_errors: bool
    command: str
    """Command line that makes the same page again."""

    @classmethod
    def of(cls, options: EvaluateOptions) -> ReportRun | None:
        """Return the requested report, or None without --report. Raises UserError for invalid options."""
        if options.report is None:
            for option in ("compare", "label_errors"):
                if getattr(options, option):
                    raise UserError("option-missing", f"--{option.replace('_', '-')} needs a report: add --report DIR")
            return None
        if options.label_errors:
            require_extra("report", "--label-errors", "cleanlab", load=False)
        check_report_folder(options.report)
        model = load_model_folder(options.model)
        other = None
        if options.compare is not None:
            other = load_model_folder(options.compare)
            require_same("the model", model.labels, "--compare", other.labels)
        # The model has memorised even wrong labels of the training split, so search label errors there only on request.
        by_default = have_cleanlab() and options.split != "train"
        wanted = by_default if options.label_errors is None else options.label_errors
        shards = open_store(options.shards, options.cache)
        return cls(options.report, model, other, shards, shards.manifest(), wanted, command_line())

    def infer_other(self, accelerator: Accelerator, split: str, batch_size: int, workers: int) -> SplitLogits | None:
        """Return the logits of the --compare model for ``split``, on every rank. Return None without --compare."""
        if self.other is None:
            return None
        warn_of_another_set(self.other, self.manifest, self.shards, split)
        return infer_split(accelerator, self.other, self.shards, self.manifest, split, batch_size, workers)

    def write(self, outputs: SplitLogits, others: SplitLogits | None, own: Sequence[Metric] = ()) -> Path:
        """Build and write the report. Return the path of its page. ``own``: metrics of the user."""
        return write_report(self.folder, self.build(outputs, others, own))

    def build(self, outputs: SplitLogits, others: SplitLogits | None, own: Sequence[Metric] = ()) -> Report:
        """Build the report, and write nothing."""
        reader = ShardReader.of_split(self.shards, outputs.split, self.manifest)
        names = run_names(self.model.path, self.other.path if self.other else None)
        inputs = ReportInputs(
            outputs.split,
            list(outputs.genres),
            outputs.targets,
            outputs.ids,
            reader.image_bytes,
            baseline_prevalence(self.manifest, outputs),
            ModelOutputs(names[0], self.model, outputs.logits),
            ModelOutputs(names[1], self.other, others.logits) if self.other and others else None,
            {
                "shard set": str(self.shards),
                FINGERPRINT: self.manifest.fingerprint,
                "labels fingerprint": self.manifest.labels.fingerprint,
            },
            self.command,
            self.manifest.units_of(outputs.split),
            outputs.sample_weights,
            date.today().isoformat(),
            own,
        )
        return build_report(inputs, label_errors=self.label_errors)


def run_names(*models: Path | None) -> list[str]:
    """Return names for models: the names of the run folders, or the whole paths if two names are equal."""
    paths = [path for path in models if path is not None]
    wholes = [path.resolve() for path in paths]
    names = [whole.parent.name if whole.name == "model" and whole.parent.name else whole.name for whole in wholes]
    return [str(path) for path in paths] if len(set(names)) < len(names) else names


def command_line() -> str:
    """Return the command line without passwords. It starts with `posters evaluate`, even in launch/evaluate.py."""
    words = [without_secrets(word) for word in sys.argv[1:]]  # a password in a URL must not be on the page
    return shlex.join(["posters", "evaluate", *(words[1:] if words[:1] == ["evaluate"] else words)])
