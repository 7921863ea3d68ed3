"""Run ``posters evaluate``: evaluate a model, print tables, and write files and the requested report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shards.dataset.store import open_store
from shards.storage.files import write_json
from shards.storage.leftovers import remove_dead_partials
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import make_accelerator
from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.options import EvaluateOptions
from toolkit.evaluation.results import Evaluation, own_metrics
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import load_model_folder

if TYPE_CHECKING:
    from toolkit.report.run import ReportRun


def run_evaluate(options: EvaluateOptions) -> int:
    """Evaluate, print the tables and write the files. Return the exit status."""
    evaluate_model(options, show=True)
    return 0


def evaluate_model(options: EvaluateOptions, *, show: bool = False) -> Evaluation:
    """Evaluate and write the files. Return the evaluation, on every rank. ``show``: print the tables and the paths."""
    report = _report_run(options)
    own = own_metrics(options.metric, options.metric_options or {}, "--metric-options")
    # make_accelerator checks that all processes have read the same model and shard set.
    folder = report.model if report else load_model_folder(options.model)
    store = report.shards if report else open_store(options.shards, options.cache)
    manifest = report.manifest if report else store.manifest()
    facts = command_facts("evaluate", options) | model_facts(folder) | set_facts(manifest, store)
    if report is not None and report.other is not None:
        facts |= model_facts(report.other, "--compare")
    accelerator = make_accelerator(options.precision, facts)
    remove_dead_partials(options.model)
    how = options.split, options.thresholds, options.batch_size, options.threads, own
    evaluation, outputs = evaluate(accelerator, folder, store, manifest, *how)
    others = None
    if report is not None:
        others = report.infer_other(accelerator, options.split, options.batch_size, options.threads)
    if accelerator.is_main_process:
        if show:
            evaluation.render()
        out = options.out or options.model / f"metrics-{options.split}.json"
        predictions = (
            options.out.with_suffix(".npz") if options.out else options.model / f"predictions-{options.split}.npz"
        )
        write_json(out, evaluation.to_dict())
        outputs.save(predictions)
        if options.out is None:
            write_card(options.model)
        written = {"metrics": out, "predictions": predictions}
        if report is not None:
            written["report"] = report.write(outputs, others, own)
        if show:
            print("".join(f"{name:<12}{path}\n" for name, path in written.items()), end="")
    accelerator.end_training()
    return evaluation


def _report_run(options: EvaluateOptions) -> ReportRun | None:
    """Return the requested report, or None if none is requested. Raises UserError for invalid report options."""
    if options.report is None and not options.compare and not options.label_errors:
        return None
    from toolkit.report.run import ReportRun  # imports matplotlib, which takes a second

    return ReportRun.of(options)
