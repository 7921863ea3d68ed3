"""Run ``posters compare``: compute the outputs of all models on a split, measure their speed, and write the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from shards.dataset.labels import require_same
from shards.dataset.manifest import Manifest
from shards.dataset.store import ShardStore, open_store
from shards.errors import without_secrets
from toolkit.comparison.options import CompareOptions
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import by_main, make_accelerator
from toolkit.evaluation.evaluate import baseline_prevalence, warn_of_another_set
from toolkit.inference.split_outputs import SplitLogits, infer_split
from toolkit.model_folder.folder import ModelFolder, load_model_folder

if TYPE_CHECKING:
    from toolkit.report.inputs import ReportInputs


def run_compare(options: CompareOptions) -> int:
    """Compare the models, write the files and print the answer. Return the exit status."""
    compare_models(options, show=True)
    return 0


def compare_models(options: CompareOptions, *, show: bool = False) -> list[dict[str, Any]]:
    """Compare the models and write the files. Return the rows of compare.csv, on every rank.

    ``show``: print the answer and the path of the page.
    """
    from toolkit.comparison.build import build_comparison
    from toolkit.comparison.output import check_folder, sentences, table_rows, write_comparison
    from toolkit.comparison.speed import measure_costs, measured_on

    check_folder(options.out)
    folders = [load_model_folder(path) for path in options.models]
    for folder in folders[1:]:
        require_same(str(folders[0].path), folders[0].labels, str(folder.path), folder.labels)
    store = open_store(options.shards, options.cache)
    manifest = store.manifest()
    # make_accelerator checks that all processes have read the same models and shard set.
    facts = command_facts("compare", options) | set_facts(manifest, store)
    for number, folder in enumerate(folders, 1):
        facts |= model_facts(folder, f"model {number}")
    accelerator = make_accelerator(options.precision, facts)
    outputs = []
    for folder in folders:
        warn_of_another_set(folder, manifest, store, options.split)
        how = options.split, options.batch_size, options.threads
        outputs.append(infer_split(accelerator, folder, store, manifest, *how))

    def write() -> list[dict[str, Any]]:
        each = _inputs(options, store, manifest, folders, outputs)
        costs = measure_costs(accelerator, folders, options.batch_size)
        comparison = build_comparison(each, costs, measured_on(accelerator, options.batch_size))
        page = write_comparison(options.out, comparison)
        answer = sentences(comparison.numbers)
        if show:
            print("\n".join([f"{answer['title']}.", *answer["reasons"], *answer["warnings"], f"page        {page}"]))
        return table_rows(comparison.numbers["models"])

    rows = by_main(accelerator, write)
    accelerator.end_training()
    return rows


def _inputs(
    options: CompareOptions,
    store: ShardStore,
    manifest: Manifest,
    folders: Sequence[ModelFolder],
    outputs: Sequence[SplitLogits],
) -> list[ReportInputs]:
    """Return the inputs of a report for each model."""
    from toolkit.report.inputs import FINGERPRINT, ModelOutputs, ReportInputs
    from toolkit.report.run import run_names

    first, reader = outputs[0], ShardReader.of_split(store, options.split, manifest)
    return [
        ReportInputs(
            first.split,
            list(first.genres),
            first.targets,
            first.ids,
            reader.image_bytes,
            baseline_prevalence(manifest, first),
            ModelOutputs(name, folder, found.logits),
            None,
            {"shard set": str(store), FINGERPRINT: manifest.fingerprint},
            command_line(),
            manifest.units_of(options.split),
            first.sample_weights,
            date.today().isoformat(),
        )
        for name, folder, found in zip(run_names(*options.models), folders, outputs, strict=True)
    ]


def command_line() -> str:
    """Return the command line without passwords."""
    words = [without_secrets(word) for word in sys.argv[1:]]
    return shlex.join(["posters", *words])
