"""Batch prediction of shard sets and folders of images. All processes of a launch share the work.

A chunk is a shard or up to 512 image files. Each chunk gives one file with one row per sample, even for samples that
cannot be decoded. Chunks without a finished file are predicted in these steps:

    WorkQueue gives the next chunk to a free process → Loader reads images → Forward → a thread writes the file

After a kill, start the same command again, with any number of processes. Finished files are kept. Memory contains the
images of a few batches and the rows of two chunks.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from shards.dataset.labels import require_same
from shards.dataset.manifest import NAME
from shards.dataset.store import LocalShards, open_store
from shards.errors import Code, UserError, one_line
from shards.inputs.image_files import holds_images
from shards.progress import progress
from shards.storage.files import remove_partials
from shards.storage.lock import folder_lock
from toolkit.data.loader.faults import KEEP_ERRORS
from toolkit.data.sources.image_files import list_images
from toolkit.device.defaults import autocast_dtype, rows_for
from toolkit.distributed.agreement import Facts, command_facts, file_fact, images_facts, model_facts, set_facts
from toolkit.distributed.collectives import LostData, WorkQueue, from_main, make_accelerator
from toolkit.distributed.launch import code_of
from toolkit.inference.forward import Forward, TorchNetwork
from toolkit.inference.naming import PLAIN, NamingOptions
from toolkit.inference.onnx_runtime import OnnxModel
from toolkit.inference.rows import Rows
from toolkit.inference.scoring import Scored, batches_together, inference_loader, score
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction import measured as measure
from toolkit.prediction.chunks import (
    Chunk,
    ChunkSource,
    Content,
    OpenChunk,
    ShardChunk,
    chunk_of,
    folder_chunks,
    shard_chunks,
)
from toolkit.prediction.facts import facts_of, is_finished, refuse_others, write_rows
from toolkit.prediction.formats import ENDING_OF, FOLDER_FORMATS, FORMATS
from toolkit.prediction.options import PredictOptions

log = logging.getLogger(__name__)


@dataclass
class Job:
    """Inputs and options of a batch prediction."""

    chunks: Sequence[Chunk]
    folder: ModelFolder
    forward: Forward
    out: Path
    format: str = FOLDER_FORMATS[0]
    batch_size: int = 0
    workers: int = 0
    naming: NamingOptions = PLAIN
    how: dict[str, Any] = field(default_factory=dict)
    """Options that change the predictions, in JSON types."""
    siblings: Sequence[Chunk] = ()
    """Chunks of the splits that this command does not predict. ``out`` can contain their files from earlier runs."""

    def path(self, chunk: Chunk) -> Path:
        return self.out / f"{chunk.name}{ENDING_OF[self.format]}"

    def facts(self, content: Content) -> dict[str, Any]:
        """Return the facts (model, data and options) to store with the file of a chunk."""
        return facts_of(self.folder, content, self.naming, self.how)

    def is_finished(self, chunk: Chunk) -> bool:
        """Return whether the file of a chunk is complete. Raises UserError if its model, data or options differ."""
        path = self.path(chunk)
        return path.exists() and is_finished(path, self.facts(chunk.content()))


def run_predict_batch(options: PredictOptions) -> int:
    """Run ``posters predict`` for --shards, or for --directory with a folder as --out. Return the exit status."""
    format = options.format or FOLDER_FORMATS[0]
    if options.out is None:
        raise UserError("option-missing", "--shards needs --out FOLDER for the predictions, one file per shard")
    if format not in FOLDER_FORMATS or options.verbose:
        raise UserError(
            "option-conflict",
            f"--format json and --verbose are only for a few images; for a folder of files, remove --verbose and use "
            f"--format {', '.join(FOLDER_FORMATS)}",
        )
    if options.embeddings and not FORMATS[format].embeddings:
        kept = [name for name in FOLDER_FORMATS if FORMATS[name].embeddings]
        raise UserError("option-conflict", f"--embeddings needs --format {' or '.join(kept)}, not {format}")
    folder = load_model_folder(options.model)
    options.require_fit(folder.labels)
    chunks, siblings, data = find_chunks(options, folder)
    facts = command_facts("predict", options) | model_facts(folder) | data
    if options.onnx is not None:
        facts["--onnx"] = file_fact(options.onnx_path)
    accelerator = make_accelerator(options.precision, facts)
    forward = forward_of(options, folder, accelerator)
    how = {"precision": accelerator.mixed_precision if options.onnx is None else "no", **options.forward_facts()}
    job = Job(chunks, folder, forward, options.out, format, options.batch_size, options.threads, options, how, siblings)
    return predict_chunks(job, accelerator)


def forward_of(options: PredictOptions, folder: ModelFolder, accelerator: Accelerator) -> Forward:
    """Return the forward pass with these options on the accelerator's device. Raises UserError for a bad --onnx."""
    if options.onnx is not None:
        network = OnnxModel(options.onnx_path, folder, accelerator.device)
        return Forward(network, folder.preprocessing, options=replace(options, channels_last=False))
    model = folder.model.to(accelerator.device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    rows = rows_for(options.batch_size, accelerator.device)
    return Forward(model, folder.preprocessing, autocast_dtype(accelerator), options, rows)


def find_chunks(options: PredictOptions, folder: ModelFolder) -> tuple[list[Chunk], list[Chunk], Facts]:
    """Return the chunks to predict, the chunks of other splits, and a summary of the data to compare on all ranks.

    Raises UserError if the labels of the data differ from the labels of the model.
    """
    shards = options.shards
    store = LocalShards(options.directory or Path()) if shards is None else open_store(shards, options.cache)
    local = store.root if isinstance(store, LocalShards) else None
    if local and (shards is None or (not (local / NAME).exists() and holds_images(local))):
        if options.split or options.ignore_labels:
            raise UserError(
                "option-conflict", "--split and --ignore-labels are for shard sets, not for folders of images"
            )
        paths = list_images(local)
        return folder_chunks(local, paths), [], images_facts(local, paths)
    manifest = store.manifest()
    if manifest.genres and not options.ignore_labels:
        require_same("the model", folder.labels, "the shard set", manifest.labels)
    others = [shard for shard in manifest.shards if options.split not in (None, shard.split)]
    siblings: list[Chunk] = [ShardChunk(store, shard, manifest.labels) for shard in others]
    return shard_chunks(store, manifest, options.split), siblings, set_facts(manifest, store)


def predict_chunks(job: Job, accelerator: Accelerator) -> int:
    """Predict the chunks without a finished file. Return the exit status. Every process must call this function."""
    main = accelerator.is_main_process
    with folder_lock(job.out) if main else contextlib.nullcontext():
        todo = None
        if main:
            remove_partials(job.out)
            refuse_others(job.out, [job.path(chunk).name for chunk in (*job.chunks, *job.siblings)])
            for chunk in job.siblings:
                job.is_finished(chunk)  # raises UserError for a file of another prediction
            unfinished = [number for number, chunk in enumerate(job.chunks) if not job.is_finished(chunk)]
            # The largest chunk is first, so that no process starts a large chunk when the others have finished.
            todo = sorted(unfinished, key=lambda number: -job.chunks[number].count)
        todo = from_main(accelerator, todo)  # all processes get the list before one of them writes a file
        queue = WorkQueue(accelerator, len(todo))
        started = time.perf_counter()
        samples = failed = 0
        problem: tuple[Code, str, int] | None = None
        try:
            samples, failed = _work(job, accelerator, queue, todo)
        except (UserError, OSError) as error:  # raised below, when the other processes have finished
            problem = code_of(error), one_line(error), error.status if isinstance(error, UserError) else 2
            if accelerator.num_processes > 1:
                log.error("%s; the other processes continue", problem[1])
        results = queue.end([samples, failed, problem])
        seconds = time.perf_counter() - started
    for rank, (_, _, found) in enumerate(results):
        if found is not None:
            who = f"rank {rank}: " if accelerator.num_processes > 1 else ""
            code, line, status = found
            rest = "finished files are kept: the same command predicts the rest"
            raise LostData(code, f"{who}{line}; {rest}", status)
    accelerator.wait_for_everyone()
    status = _print_summary(job, len(todo), results, seconds) if main else 0
    accelerator.end_training()
    return status


def _work(job: Job, accelerator: Accelerator, queue: WorkQueue, todo: Sequence[int]) -> tuple[int, int]:
    """Predict the chunks that this process takes. Return the numbers of all samples and of undecodable samples."""
    device = accelerator.device
    source = ChunkSource(job.chunks, job.folder.preprocessing, device)
    total = sum(job.chunks[number].count for number in todo)
    samples = failed = 0
    written: Future[None] | None = None
    numbers: Iterator[int] = (todo[place] for place in queue.take())
    forward, threads, numbers = _choices(job, source, numbers, todo, accelerator)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        inference_loader(source, device, threads, KEEP_ERRORS) as loader,
        progress(total, "predicting", disable=not accelerator.is_main_process) as bar,
    ):
        micro_batches = source.micro_batches(numbers, rows_for(job.batch_size, device))
        groups = score(
            loader, micro_batches, source.transforms, forward, together=batches_together(device), part_of=chunk_of
        )
        for number, chunk, scored in source.whole(_counted(groups, queue, bar)):
            loader.faults.forget()
            # Write one file at a time while the next chunk is predicted, so that the GPU rarely waits for a disk.
            if written is not None:
                written.result()
            written = writer.submit(_write, job, number, chunk, scored)
            samples += scored.count
            failed += len(scored.errors)
    if written is not None:
        written.result()
    return samples, failed


def _choices(
    job: Job, source: ChunkSource, numbers: Iterator[int], todo: Sequence[int], accelerator: Accelerator
) -> tuple[Forward, int, Iterator[int]]:
    """Return the forward pass, the decoding threads (0: the default) and the numbers of the chunks of this process.

    If the prediction is large, the forward pass and the threads are chosen by a measurement (measured.py).
    """
    device, rows = accelerator.device, rows_for(job.batch_size, accelerator.device)
    counts = [job.chunks[number].count for number in todo]
    share = sum(counts) // accelerator.num_processes
    measured = device.type == "cuda" and not job.workers
    may_compile = job.forward.options.compile is None and isinstance(job.forward.network, TorchNetwork)
    if share < measure.LARGE or not (measured or may_compile) or (first := next(numbers, None)) is None:
        return job.forward, job.workers, numbers
    forward, threads = job.forward, job.workers
    pixels = measure.some_pixels(rows, job.folder.preprocessing.image_size, device)
    seconds = measure.forward_seconds(forward, pixels)
    if measured:
        threads = measure.choose_threads(source.opened(first), job.chunks[first].count, seconds)
    if may_compile and measure.worth_compiling(share, seconds):
        padding = sum(-(-count // rows) * rows for count in counts) / sum(counts)
        forward = measure.compiled_if_faster(forward, pixels, seconds, padding)
    return forward, threads, itertools.chain([first], numbers)


def _counted(batches: Iterator[Scored], queue: WorkQueue, bar: Any) -> Iterator[Scored]:
    for scored in batches:
        bar.update(queue.report(scored.count) - bar.n)
        yield scored


def _write(job: Job, number: int, chunk: OpenChunk, scored: Scored) -> None:
    rows = Rows.of(chunk.ids(), scored, job.folder, job.naming)
    write_rows(job.path(job.chunks[number]), rows, job.facts(chunk.content))


def _print_summary(job: Job, done: int, results: Sequence[Sequence[Any]], seconds: float) -> int:
    samples, failed = (sum(result[k] for result in results) for k in (0, 1))
    if failed:
        log.warning("%d images could not be decoded; their rows contain the error", failed)
    before = len(job.chunks) - done
    print(f"predicted      {samples} images now ({done} files), {before} files were finished before")
    if samples:
        print(f"speed          {samples / seconds:.1f} images/s, {len(results)} processes")
    if job.naming.rule:
        print(f"named          {job.naming.rule} of each image")
    total = sum(chunk.count for chunk in job.chunks)
    print(f"predictions    {job.out} ({len(job.chunks)} {job.format} files, {total} rows)")
    return 1 if samples and failed == samples else 0
