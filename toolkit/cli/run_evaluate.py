"""``posters evaluate`` itself: from its options to tables, files and a report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shards.cli.arguments import store_of
from shards.errors import UserError
from shards.storage.files import write_json
from shards.storage.leftovers import remove_dead_partials
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import load_model_folder

if TYPE_CHECKING:
    from toolkit.report.run import ReportRun
from toolkit.evaluation.evaluate import evaluate


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files. Returns the exit status."""
    thresholds = parse_thresholds(args.thresholds)
    if args.batch_size < 0 or args.workers < 0:
        raise UserError("--batch-size and --workers must be 0 (automatic) or more")
    if args.out is not None and args.out.suffix.lower() not in ("", ".json"):
        raise UserError(f"--out {args.out} must end in .json; the predictions go into an .npz file beside it")
    report = _report_run(args)
    # All that is read from here on is what the processes compare.
    folder = report.model if report else load_model_folder(args.model)
    store = report.shards if report else store_of(args)
    manifest = report.manifest if report else store.manifest()
    facts = command_facts("evaluate", args) | model_facts(folder) | set_facts(manifest, store)
    if report is not None and report.other is not None:
        facts |= model_facts(report.other, "--compare")
    accelerator = make_accelerator(args.precision, facts)
    remove_dead_partials(args.model)
    evaluation, outputs = evaluate(
        accelerator, folder, store, manifest, args.split, thresholds, args.batch_size, args.workers
    )
    others = None
    if report is not None:
        others = report.infer_other(accelerator, args.split, args.batch_size, args.workers)
    if accelerator.is_main_process:
        evaluation.render()
        out = args.out or args.model / f"metrics-{args.split}.json"
        predictions = (
            args.out.with_suffix(".npz") if args.out else args.model / f"predictions-{args.split}.npz"
        )
        write_json(out, evaluation.to_dict())
        outputs.save(predictions)
        if args.out is None:
            write_card(args.model)
        print(f"metrics     {out}")
        print(f"predictions {predictions}")
        if report is not None:
            print(f"report      {report.write(outputs, others)}")
    accelerator.end_training()
    return 0


def _report_run(args: argparse.Namespace) -> ReportRun | None:
    """The report that the options ask for, checked before minutes of work."""
    if args.report is None and not args.compare and not args.label_errors:
        return None
    from toolkit.report.run import ReportRun  # matplotlib takes a second

    return ReportRun.of(args)


def parse_thresholds(text: str) -> list[float]:
    """``0.3,0.5`` → [0.3, 0.5]. Raises UserError for anything outside [0, 1]."""
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise UserError(f"--thresholds takes numbers from 0 to 1 such as 0.3,0.5, not {text!r}")
    return values
