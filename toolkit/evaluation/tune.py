"""Choose a trained model's thresholds and calibration again, on the validation split, without training.

    posters tune --model RUN/model --shards SHARDS --aim "precision>=0.6"
    accelerate launch launch/tune.py --model RUN/model --shards SHARDS

The command rewrites MODEL/labels.json, metrics-val.json, predictions-val.npz and the model card. The weights do not
change. The metrics of other splits belong to the old thresholds. The card leaves them out until `posters evaluate`
measures them again.
"""

from __future__ import annotations

import logging

from shards.dataset.store import open_store
from shards.storage.files import write_json
from shards.storage.leftovers import remove_dead_partials
from toolkit.decisions.decisions import choose_decisions
from toolkit.decisions.objective import parse_aim
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import make_accelerator
from toolkit.evaluation.evaluate import evaluate_outputs
from toolkit.evaluation.options import TuneOptions
from toolkit.evaluation.results import Evaluation
from toolkit.inference.split_outputs import infer_split
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import OWN_KEY, load_model_folder, write_labels

log = logging.getLogger(__name__)

#: Split for choosing thresholds and calibration. The test split must not be used: its metrics are reported.
SPLIT = "val"


def run_tune(options: TuneOptions) -> int:
    """Choose thresholds and calibration, print the metrics and write the files. Returns the exit status."""
    tune_model(options, show=True)
    return 0


def tune_model(options: TuneOptions, *, show: bool = False) -> Evaluation:
    """Choose thresholds and calibration, and write the files. Return the evaluation on validation, on every rank.

    ``show``: print the metrics and the choice.
    """
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
            print(f"thresholds  {folder.decisions.source}")
            print(f"calibration {folder.decisions.calibration}")
            print(f"labels      {options.model / 'labels.json'}")
    accelerator.end_training()
    return evaluation
