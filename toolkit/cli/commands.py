"""Every command of ``posters``: its line of help, the dataclass of its options, and what does its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shards.cli.commands import Command, choose

#: In the order of help.
COMMANDS = {
    "fetch": Command(
        "download posters from the links of a CSV", "shards.fetch.options:FetchOptions", "shards.cli.fetch:run_fetch"
    ),
    "clean": Command(
        "paint the text of posters over, and prove that it is gone",
        "shards.clean.run:CleanOptions",
        "shards.cli.clean:run_clean",
    ),
    "referee": Command(
        "look for text on cleaned posters, more strictly than cleaning did",
        "shards.clean.verify:RefereeCommand",
        "shards.cli.clean:run_referee",
    ),
    "shards": Command("build, describe, verify or index a shard set"),
    "shards build": Command(
        "pack posters and a CSV into WebDataset shards", "shards.build.run:BuildOptions", "shards.cli.main:run_build"
    ),
    "shards info": Command(
        "print counts, genres and sizes of a shard set", "shards.cli.main:InfoOptions", "shards.cli.main:run_info"
    ),
    "shards verify": Command(
        "check every byte, count and image; exit 1 if anything is wrong",
        "shards.cli.main:VerifyOptions",
        "shards.cli.main:run_verify",
    ),
    "shards index": Command(
        "write index and manifest for tars that another tool made",
        "shards.build.index_tars:IndexOptions",
        "shards.cli.main:run_index",
        "Write index and manifest for tars that another tool made; they stay as they are. Every image is decoded once, "
        "as a build does: some 2 ms of a core each for posters of 300 x 450 pixels. What is not taken is in "
        "rejected.csv, with its reason.",
    ),
    "train": Command(
        "train on a shard set",
        "toolkit.cli.train:TrainOptions",
        "toolkit.cli.train:run_train",
        "Train a multi-label classifier. Under `accelerate launch launch/train.py` on every process.",
    ),
    "tune": Command(
        "choose a model's thresholds and calibration again, on validation",
        "toolkit.evaluation.options:TuneOptions",
        "toolkit.evaluation.tune:run_tune",
    ),
    "evaluate": Command(
        "evaluate a model on a split of a shard set",
        "toolkit.evaluation.options:EvaluateOptions",
        "toolkit.cli.run_evaluate:run_evaluate",
    ),
    "predict": Command(
        "name the genres of images or of a shard set",
        "toolkit.prediction.options:PredictOptions",
        "toolkit.prediction.files:run_predict",
    ),
    "app": Command(
        "a page in the browser: drop posters, see genres and why",
        "toolkit.app.options:AppOptions",
        "toolkit.app.server:run_app",
    ),
    "audit": Command(
        "how much does a model read? raw against cleaned posters",
        "toolkit.audit.options:AuditOptions",
        "toolkit.cli.run_audit:run_audit",
    ),
    "export": Command(
        "a model as one ONNX or torch.export file",
        "toolkit.export.options:ExportOptions",
        "toolkit.export.run:run_export",
    ),
    "push": Command(
        "upload a model folder to the hub", "toolkit.export.options:PushOptions", "toolkit.export.hub:run_push"
    ),
    "import": Command(
        "a model folder from an earlier script's .pth",
        "toolkit.export.options:ImportOptions",
        "toolkit.export.legacy_checkpoint:run_import",
    ),
    "demo": Command(
        "the whole path on a small synthetic poster set, in minutes",
        "toolkit.cli.demo_options:DemoOptions",
        "toolkit.cli.demo:run_demo",
    ),
}


def read(words: Sequence[str]) -> tuple[str, Any]:
    """(name of the command, its options) of a command line. Raises UserError; prints help and exits if asked to."""
    name, rest = choose(COMMANDS, words, "Clean, shard, train, evaluate, predict: multi-label image models.")
    from shards.cli.options import Parser  # listing the commands needs none

    parser = Parser(name, COMMANDS)
    return name, parser.make(parser.parse(rest))
