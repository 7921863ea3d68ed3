"""Evaluate a model folder on a split of a shard set: thresholds, ranking metrics, per-genre table, baselines.

    posters evaluate --model RUN/model --shards SHARDS [--split test]
    accelerate launch launch/evaluate.py --model RUN/model --shards SHARDS

The threshold of the model was chosen on validation and is only applied here. Writes MODEL/metrics-SPLIT.json (or
--out) and the model card.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from shards.errors import UserError
from shards.files import write_json
from shards.labels import require_same
from shards.manifest import Manifest
from shards.progress import progress
from toolkit.data.cuts import eval_cutter
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.reader import ShardReader
from toolkit.distributed import make_accelerator
from toolkit.inference import infer_all
from toolkit.model_card import write_card
from toolkit.model_folder import load_model_folder
from toolkit.report_tables import Evaluation, evaluate_arrays
from toolkit.validation import train_prevalence

log = logging.getLogger(__name__)


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the JSON. Returns the exit status."""
    thresholds = parse_thresholds(args.thresholds)
    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers 0 or more")
    accelerator = make_accelerator(args.precision)
    evaluation = evaluate(
        accelerator, args.model, args.shards, args.split, thresholds, args.batch_size, args.workers
    )
    if accelerator.is_main_process:
        evaluation.render()
        out = args.out or args.model / f"metrics-{args.split}.json"
        write_json(out, evaluation.to_dict())
        if args.out is None:
            write_card(args.model)
        print(f"metrics    {out}")
    accelerator.end_training()
    return 0


def evaluate(
    accelerator: Accelerator,
    model_folder: Path,
    shards: Path,
    split: str,
    thresholds: list[float],
    batch_size: int = 64,
    workers: int = 0,
) -> Evaluation:
    """The evaluation of a model on a split, on every rank; each sample counts once at any number of processes."""
    folder = load_model_folder(model_folder)
    manifest = Manifest.read(shards)
    require_same("the model", folder.labels, "the shard set", manifest.labels)
    reader = ShardReader.of_split(shards, split, manifest)
    model = folder.model.to(accelerator.device)
    cutter = eval_cutter(reader, folder.preprocessing, "auto", accelerator.device)
    with (
        Loader(reader, decode_threads(workers), prefetch=4, device=accelerator.device) as loader,
        progress(len(reader), f"evaluating {split}", disable=not accelerator.is_main_process) as bar,
    ):
        logits, _ = infer_all(
            model,
            loader,
            cutter,
            batch_size,
            folder.preprocessing,
            accelerator,
            on_batch=lambda count: bar.update(count * accelerator.num_processes),
        )
    if "train" in manifest.split_names:
        prevalence = train_prevalence(manifest)
    else:
        log.warning("%s has no training split: the baselines use the prevalence of %s itself", shards, split)
        prevalence = reader.targets.mean(axis=0)
    chosen = folder.thresholds[0] if np.ptp(folder.thresholds) == 0 else folder.thresholds
    if split == "val":
        log.warning("the model's threshold was chosen on val: its metrics there are optimistic")
    return evaluate_arrays(
        reader.targets, logits, folder.labels.genres, prevalence, chosen, thresholds, split=split
    )


def parse_thresholds(text: str) -> list[float]:
    """``0.3,0.5`` → [0.3, 0.5]. Raises UserError for anything outside [0, 1]."""
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise UserError(f"--thresholds takes numbers from 0 to 1 such as 0.3,0.5, not {text!r}")
    return values
