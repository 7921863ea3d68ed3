"""Choose a trained model's thresholds and calibration again, on the validation split, without training.

    posters tune --model RUN/model --shards SHARDS --aim "precision>=0.6"
    accelerate launch launch/tune.py --model RUN/model --shards SHARDS

Rewrites MODEL/labels.json, metrics-val.json, predictions-val.npz and the model card; the weights stay as they are.
Metrics of other splits are of the old decisions from then on, and the card leaves them out until they are measured
again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shards.cli.arguments import store_of
from shards.errors import UserError
from shards.storage.files import write_json
from shards.storage.leftovers import remove_dead_partials
from toolkit.config.schema import DecideConfig
from toolkit.decisions.choose import choose_decisions
from toolkit.decisions.objective import parse_aim
from toolkit.distributed.agreement import command_facts, model_facts, set_facts
from toolkit.distributed.collectives import make_accelerator
from toolkit.evaluation.evaluate import evaluate_outputs
from toolkit.inference.split_outputs import infer_split
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import OURS, load_model_folder, write_labels

if TYPE_CHECKING:
    import argparse

log = logging.getLogger(__name__)

#: Decisions are chosen here and nowhere else: on test they would fit what is to be reported.
SPLIT = "val"


def run_tune(args: argparse.Namespace) -> int:
    """Choose, show and write. Returns the exit status."""
    parse_aim(args.aim)  # before minutes of work
    if args.batch_size < 0 or args.workers < 0:
        raise UserError("--batch-size and --workers must be 0 (automatic) or more")
    if not 0 <= args.slack < 1:
        raise UserError(f"--slack must be at least 0, under 1, not {args.slack}")
    folder = load_model_folder(args.model)
    remove_dead_partials(args.model)
    shards = store_of(args)
    manifest = shards.manifest()
    facts = command_facts("tune", args) | model_facts(folder) | set_facts(manifest, shards)
    accelerator = make_accelerator(args.precision, facts)
    if folder.config[OURS].get("shard_set") != manifest.fingerprint:
        log.warning(
            "%s is not the shard set that the model was trained on: if its %s split holds training samples, "
            "thresholds and calibration will trust the model too much",
            shards,
            SPLIT,
        )
    outputs = infer_split(accelerator, folder, shards, manifest, SPLIT, args.batch_size, args.workers)
    if accelerator.is_main_process:
        decide = DecideConfig(args.thresholds, args.aim, args.calibration, args.slack)
        groups = manifest.units_of(SPLIT)
        folder.decisions = choose_decisions(
            outputs.targets, outputs.logits, decide, split=SPLIT, groups=groups
        )
        evaluation = evaluate_outputs(folder, manifest, outputs)
        evaluation.render()
        write_labels(args.model, folder.labels, folder.decisions)
        write_json(args.model / f"metrics-{SPLIT}.json", evaluation.to_dict())
        outputs.save(args.model / f"predictions-{SPLIT}.npz")
        write_card(args.model)
        print(f"thresholds  {folder.decisions.source}")
        print(f"calibration {folder.decisions.calibration}")
        print(f"labels      {args.model / 'labels.json'}")
    accelerator.end_training()
    return 0
