"""Batch prediction: one Parquet file per shard, each sample once, finished files skipped.

Columns: key, id, probabilities (list of float, one per genre in the model's order, calibrated), genres (named ones),
error (null, or why the image could not be decoded). The schema's metadata holds genres, thresholds, calibration and
what was predicted by what.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator

from shards.errors import UserError
from shards.files import atomic_write, one_line, remove_partials
from shards.labels import require_same
from shards.manifest import Manifest, Shard
from shards.progress import progress
from toolkit.data.cuts import eval_cutter
from toolkit.data.faults import KEEP_ERRORS
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.plan import EvalPlan
from toolkit.data.reader import ShardReader
from toolkit.distributed import make_accelerator
from toolkit.inference import infer_shares
from toolkit.model_folder import ModelFolder

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("probabilities", pa.list_(pa.float32())),
        ("genres", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)


def run_predict_shards(args: argparse.Namespace) -> int:
    """``posters predict --shards``; returns the exit status."""
    from toolkit.predict import load_folder

    if args.output is None:
        raise UserError("--shards needs --out FOLDER for its Parquet files")
    if args.format or args.verbose:
        raise UserError(
            "--format and --verbose go with images; shard predictions are Parquet, all genres included"
        )
    manifest = Manifest.read(args.shards)
    folder = load_folder(args.model, args.threshold)
    if manifest.genres and not args.ignore_labels:
        require_same("the model", folder.labels, "the shard set", manifest.labels)
    shards = manifest.of_split(args.split) if args.split else manifest.shards
    accelerator = make_accelerator(args.precision)
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        remove_partials(out)
    todo = [shard for shard in shards if not _finished(out, shard, folder)]
    accelerator.wait_for_everyone()  # every rank has the same list before any file appears
    own = todo[accelerator.process_index :: accelerator.num_processes]
    folder.model.to(accelerator.device)
    with progress(
        sum(shard.samples for shard in own), "predicting", disable=not accelerator.is_main_process
    ) as bar:
        failed = 0
        for shard in own:
            failed += predict_shard(
                args.shards, shard, manifest, folder, accelerator, out, args.batch_size, args.workers, bar
            )
    if failed:
        log.warning("%d images could not be decoded; their rows carry the error", failed)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        total = sum(shard.samples for shard in shards)
        print(f"predicted      {len(todo)} shards now, {len(shards) - len(todo)} were finished before")
        print(f"predictions    {out} ({len(shards)} Parquet files, {total} samples)")
    accelerator.end_training()
    return 0


def predict_shard(
    root: Path,
    shard: Shard,
    manifest: Manifest,
    folder: ModelFolder,
    accelerator: Accelerator,
    out: Path,
    batch_size: int,
    workers: int,
    bar: Any,
) -> int:
    """Predict one shard and write its file, atomically. Returns the number of undecodable images."""
    reader = ShardReader(root, [shard], manifest.labels)
    shares = EvalPlan(len(reader), batch_size).shares(0, 1)
    cutter = eval_cutter(reader, folder.preprocessing, "auto", accelerator.device)
    with Loader(
        reader, decode_threads(workers), prefetch=4, device=accelerator.device, policy=KEEP_ERRORS
    ) as loader:
        indices, logits, errors = infer_shares(
            folder.model, loader, shares, cutter, folder.preprocessing, accelerator, on_batch=bar.update
        )
    rows: list[np.ndarray | None] = [None] * len(reader)
    for index, values in zip(indices.tolist(), folder.decisions.probabilities(logits), strict=True):
        rows[index] = values
    genres = np.array(folder.labels.genres, dtype=object)
    table = pa.table(
        {
            "key": [reader.key(i) for i in range(len(reader))],
            "id": [reader.sample_id(i) for i in range(len(reader))],
            "probabilities": [None if p is None else p.astype(np.float32) for p in rows],
            "genres": [[] if p is None else genres[p >= folder.thresholds].tolist() for p in rows],
            "error": [errors.get(i) for i in range(len(reader))],
        },
        schema=SCHEMA.with_metadata(
            {"poster_toolkit": json.dumps(_facts(shard, folder), ensure_ascii=False)}
        ),
    )
    with atomic_write(output_path(out, shard)) as stream:
        pq.write_table(table, stream, compression="zstd")
    return len(errors)


def output_path(out: Path, shard: Shard) -> Path:
    """``train-00000.tar`` → ``OUT/train-00000.parquet``."""
    return out / (shard.name.removesuffix(".tar") + ".parquet")


def _facts(shard: Shard, folder: ModelFolder) -> dict[str, Any]:
    decisions = folder.decisions.to_dict()
    facts = {
        "genres": list(folder.labels.genres),
        "labels": folder.labels.fingerprint,
        "thresholds": decisions["thresholds"],
        "weights": folder.fingerprint,
        "shard": shard.sha256,
    }
    # Left out where there is none: files predicted before models were calibrated still count as finished.
    calibrated = folder.decisions.calibration != "none"
    return {**facts, "calibration": decisions["calibration"]} if calibrated else facts


def _finished(out: Path, shard: Shard, folder: ModelFolder) -> bool:
    """Whether this shard's file is there. Raises UserError if it is another model's or another shard's."""
    path = output_path(out, shard)
    if not path.exists():
        return False
    try:
        metadata = pq.read_schema(path).metadata or {}
        facts = json.loads(metadata.get(b"poster_toolkit", b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); remove it or choose another --out"
        ) from None
    if facts != _facts(shard, folder):
        raise UserError(
            f"{path} holds predictions of another model, threshold, calibration or shard; "
            f"remove it or choose another --out"
        )
    return True
