"""The table of all commands of ``posters``: help text, dataclass of the options, and function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shards.cli.commands import Command, choose

#: Name → command, in the order of the help text.
COMMANDS = {
    "fetch": Command(
        "download posters from the links of a table", "shards.fetch.options:FetchOptions", "shards.cli.fetch:run_fetch"
    ),
    "clean": Command(
        "paint over the text of posters, and check the result",
        "shards.clean.run:CleanOptions",
        "shards.cli.clean:run_clean",
    ),
    "referee": Command(
        "detect text on cleaned posters, with stricter settings than `posters clean`",
        "shards.clean.verify:RefereeCommand",
        "shards.cli.clean:run_referee",
    ),
    "shards": Command("build, describe, verify or index a shard set"),
    "shards build": Command(
        "pack posters and a table of genres into WebDataset shards",
        "shards.build.run:BuildOptions",
        "shards.cli.main:run_build",
    ),
    "shards info": Command(
        "print counts, genres and sizes of a shard set", "shards.cli.main:InfoOptions", "shards.cli.main:run_info"
    ),
    "shards verify": Command(
        "check all bytes, counts and images; exit status 1 if there is a problem",
        "shards.cli.main:VerifyOptions",
        "shards.cli.main:run_verify",
    ),
    "shards index": Command(
        "make a shard set from tar files of another tool",
        "shards.build.index_tars:IndexOptions",
        "shards.cli.main:run_index",
        "Make a shard set from tar files of another tool. The command writes indexes and a manifest, and does not "
        "change the tar files. It decodes every image once, which takes about 2 ms on one core for 300 x 450 pixels. "
        "rejected.csv lists the samples that cannot be used, with the reasons.",
    ),
    "train": Command(
        "train on a shard set",
        "toolkit.cli.train:TrainOptions",
        "toolkit.cli.train:run_train",
        "Train a multi-label classifier. To use several processes, start `accelerate launch launch/train.py`.",
    ),
    "tune": Command(
        "choose the thresholds and the calibration of a model again on the validation split",
        "toolkit.evaluation.options:TuneOptions",
        "toolkit.evaluation.tune:run_tune",
    ),
    "evaluate": Command(
        "evaluate a model on a split of a shard set",
        "toolkit.evaluation.options:EvaluateOptions",
        "toolkit.cli.run_evaluate:run_evaluate",
    ),
    "predict": Command(
        "predict the genres of images or of a shard set",
        "toolkit.prediction.options:PredictOptions",
        "toolkit.prediction.files:run_predict",
    ),
    "app": Command(
        "serve a web page that predicts the genres of uploaded posters and shows heat maps",
        "toolkit.app.options:AppOptions",
        "toolkit.app.server:run_app",
    ),
    "audit": Command(
        "measure how much a model uses the text on posters",
        "toolkit.audit.options:AuditOptions",
        "toolkit.cli.run_audit:run_audit",
    ),
    "export": Command(
        "export a model as one ONNX or torch.export file",
        "toolkit.export.options:ExportOptions",
        "toolkit.export.run:run_export",
    ),
    "push": Command(
        "upload a model folder to Hugging Face", "toolkit.export.options:PushOptions", "toolkit.export.hub:run_push"
    ),
    "import": Command(
        "make a model folder from a .pth file of the earlier training script",
        "toolkit.export.options:ImportOptions",
        "toolkit.export.legacy_checkpoint:run_import",
    ),
    "demo": Command(
        "run all steps on a small set of drawn posters, which takes minutes",
        "toolkit.cli.demo_options:DemoOptions",
        "toolkit.cli.demo:run_demo",
    ),
}


def read(words: Sequence[str]) -> tuple[str, Any]:
    """Return the name of the command and its options. Raises UserError for bad input. --help prints help and exits."""
    name, rest = choose(COMMANDS, words, "Clean and shard posters. Train, evaluate and use multi-label image models.")
    from shards.cli.options import Parser  # the import is slow, and the list of commands does not need it

    parser = Parser(name, COMMANDS)
    return name, parser.make(parser.parse(rest))
