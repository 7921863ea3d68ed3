"""Evaluate a model folder on a split of a shard set: thresholds, ranking metrics, calibration, genres, baselines.

    posters evaluate --model RUN/model --shards SHARDS [--split test]
    accelerate launch launch/evaluate.py --model RUN/model --shards SHARDS
    posters evaluate --model RUN/model --shards SHARDS --report DIR [--compare RUN2]

The model's thresholds and calibration were chosen on validation and are only applied here. Writes
MODEL/metrics-SPLIT.json and MODEL/predictions-SPLIT.npz (or --out and an .npz beside it) and the model card; with
--report also a page (toolkit/report/).
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

import numpy as np
from accelerate import Accelerator

from shards.arguments import store_of
from shards.errors import UserError
from shards.files import write_json
from shards.leftovers import remove_dead_partials
from shards.manifest import Manifest
from shards.store import ShardsAt
from toolkit.agreement import command_facts, model_facts, set_facts
from toolkit.distributed import make_accelerator
from toolkit.metrics import FloatArray
from toolkit.model_card import write_card
from toolkit.model_folder import OURS, ModelFolder, load_model_folder
from toolkit.report_tables import FIXED_THRESHOLDS, Evaluation, evaluate_arrays
from toolkit.split_logits import SplitLogits, infer_split
from toolkit.validation import train_prevalence

if TYPE_CHECKING:
    from toolkit.report.run import ReportRun

log = logging.getLogger(__name__)


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


def evaluate(
    accelerator: Accelerator,
    folder: ModelFolder,
    shards: ShardsAt,
    manifest: Manifest,
    split: str,
    thresholds: list[float],
    batch_size: int = 0,
    workers: int = 0,
) -> tuple[Evaluation, SplitLogits]:
    """(evaluation of a model on a split, the logits it comes from), on every rank."""
    warn_of_another_set(folder, manifest, shards, split)
    outputs = infer_split(accelerator, folder, shards, manifest, split, batch_size, workers)
    if folder.decisions.chosen_on.get("split", "val") == split:
        log.warning(
            "the model's thresholds and calibration were chosen on %s: its metrics there are optimistic",
            split,
        )
    return evaluate_outputs(folder, manifest, outputs, thresholds), outputs


def warn_of_another_set(folder: ModelFolder, manifest: Manifest, shards: ShardsAt, split: str) -> None:
    """One line if the model was trained on another shard set, whose training split may hold these samples."""
    trained_on = folder.config[OURS].get("shard_set")
    if trained_on and trained_on != manifest.fingerprint:
        log.warning(
            "%s is not the shard set that %s was trained on: if its %s split holds samples of that training, the "
            "model's figures there are too good",
            shards,
            folder.path,
            split,
        )


def evaluate_outputs(
    folder: ModelFolder,
    manifest: Manifest,
    outputs: SplitLogits,
    thresholds: list[float] | None = None,
) -> Evaluation:
    """Logits of a split, evaluated at the folder's decisions and at fixed ``thresholds``."""
    if "train" not in manifest.split_names:
        log.warning(
            "the shard set has no training split: the baselines use the prevalence of %s itself",
            outputs.split,
        )
    return evaluate_arrays(
        outputs.targets,
        outputs.logits,
        folder.labels.genres,
        baseline_prevalence(manifest, outputs),
        folder.decisions,
        thresholds or FIXED_THRESHOLDS,
        split=outputs.split,
        shard_set=outputs.shard_set,
    )


def baseline_prevalence(manifest: Manifest, outputs: SplitLogits) -> FloatArray:
    """(G,) what the baselines know: the prevalence in training, or without a training split in the split itself."""
    if "train" in manifest.split_names:
        return train_prevalence(manifest)
    return np.asarray(outputs.targets.mean(axis=0), dtype=np.float64)


def parse_thresholds(text: str) -> list[float]:
    """``0.3,0.5`` → [0.3, 0.5]. Raises UserError for anything outside [0, 1]."""
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise UserError(f"--thresholds takes numbers from 0 to 1 such as 0.3,0.5, not {text!r}")
    return values
