"""Choose a trained model's thresholds and calibration again, on the validation split, without training.

    posters tune --model RUN/model --shards SHARDS --aim "precision>=0.6"
    accelerate launch launch/tune.py --model RUN/model --shards SHARDS
    posters tune --model RUN/model --set Drama=0.5

The command rewrites MODEL/labels.json, metrics-val.json, predictions-val.npz and the model card. The weights do not
change. The metrics of other splits belong to the old thresholds. The card leaves them out until `posters evaluate`
measures them again.

With --set, the command writes only the given thresholds and the model card. It reads no shard set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from shards.dataset.labels import LabelSet
from shards.dataset.store import open_store
from shards.errors import UserError, printable_line
from shards.storage.files import write_json
from shards.storage.leftovers import remove_dead_partials
from toolkit.decisions.decisions import Decisions, choose_decisions
from toolkit.decisions.objective import parse_aim
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.launch import processes_of
from toolkit.evaluation.evaluate import evaluate_outputs
from toolkit.evaluation.options import TuneOptions
from toolkit.evaluation.results import Evaluation
from toolkit.evaluation.tables import number_table, report_console
from toolkit.inference.naming import require_genres
from toolkit.inference.split_outputs import infer_split
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import OWN_KEY, load_labels, load_model_folder, write_labels

log = logging.getLogger(__name__)

#: Split for choosing thresholds and calibration. The test split must not be used: its metrics are reported.
SPLIT = "val"


def run_tune(options: TuneOptions) -> int:
    """Choose thresholds and calibration, print the metrics and write the files. Returns the exit status."""
    if options.by_hand is not None:
        return set_by_hand(options.model, options.by_hand)
    tune_model(options, show=True)
    return 0


def tune_model(options: TuneOptions, *, show: bool = False) -> Evaluation:
    """Choose thresholds and calibration, and write the files. Return the evaluation on validation, on every rank.

    ``show``: print the metrics and the choice.
    """
    if options.shards is None:  # thresholds set by hand need no shard set
        raise UserError("option-missing", "shards is missing: thresholds are chosen on the validation split")
    parse_aim(options.decide.aim)  # report an invalid aim before the long computation
    folder = load_model_folder(options.model)
    remove_dead_partials(options.model)
    shards = open_store(options.shards, options.cache)
    manifest = shards.manifest()
    facts = command_facts("tune", options) | model_facts(folder) | set_facts(manifest, shards)
    accelerator = make_accelerator(options.precision, facts)
    if folder.config[OWN_KEY].get("shard_set") != manifest.fingerprint:
        log.warning(
            "%s is not the shard set that the model was trained on: if its %s split contains training samples, "
            "the new thresholds and the new calibration do not fit new posters",
            shards,
            SPLIT,
        )
    outputs = infer_split(accelerator, folder, shards, manifest, SPLIT, options.batch_size, options.threads)
    groups = manifest.units_of(SPLIT)
    folder.decisions = choose_decisions(outputs.targets, outputs.logits, options.decide, split=SPLIT, groups=groups)
    evaluation = evaluate_outputs(folder, manifest, outputs)
    if accelerator.is_main_process:
        if show:
            evaluation.render()
        write_labels(options.model, folder.labels, folder.decisions)
        write_json(options.model / f"metrics-{SPLIT}.json", evaluation.to_dict())
        outputs.save(options.model / f"predictions-{SPLIT}.npz")
        write_card(options.model)
        if show:
            print(f"thresholds  {printable_line(folder.decisions.source)}")
            print(f"calibration {folder.decisions.calibration}")
            print(f"labels      {options.model / 'labels.json'}")
    accelerator.end_training()
    return evaluation


def set_by_hand(model: Path, given: Mapping[str, float]) -> int:
    """Write the thresholds of some genres into a model folder, and print all thresholds. Returns the exit status."""
    if processes_of(os.environ) > 1:
        raise UserError("option-conflict", "--set needs one process; start `posters tune` without a launcher")
    labels, decisions = load_labels(model)
    require_genres(list(given), labels, "--set")
    remove_dead_partials(model)
    decisions = decisions.with_thresholds(given, labels)
    write_labels(model, labels, decisions)
    write_card(model)
    report_console().print(thresholds_table(labels, decisions))
    print(f"thresholds  {printable_line(decisions.source)}")
    print(f"labels      {model / 'labels.json'}")
    return 0


def thresholds_table(labels: LabelSet, decisions: Decisions) -> Table:
    """Return a table of the threshold of each genre. It says which thresholds were set by hand."""
    chosen = decisions.chosen_on.get("by_hand", {})
    table = number_table("thresholds", "genre", ["threshold", "origin"])
    for genre, value in zip(labels.genres, decisions.thresholds.tolist(), strict=True):
        origin = f"set by hand (chosen: {chosen[genre]:.3f})" if genre in chosen else "chosen"
        table.add_row(Text(printable_line(genre)), f"{value:.3f}", origin)
    return table
