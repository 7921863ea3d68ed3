"""The table of all commands of ``posters``: help text, dataclass of the options, function and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shards.cli.commands import Command, choose

#: ``posters`` itself. The examples are the path of a new user.
POSTERS = Command(
    "Clean and shard posters. Train, evaluate and use multi-label image models.",
    examples=(
        "shards build --images posters --metadata posters.csv --out SHARDS",
        "train --config best --shards SHARDS --out RUN",
        "evaluate --model RUN --shards SHARDS --report REPORT",
        "predict --model RUN poster.jpg",
        "app --model RUN",
    ),
)

#: Name → command, in the order of the help text.
COMMANDS = {
    "fetch": Command(
        "download posters from the links of a table",
        "shards.fetch.options:FetchOptions",
        "shards.cli.fetch:run_fetch",
        examples=(
            "fetch --metadata links.csv --url-column poster_url --out posters",
            "fetch --metadata links.csv --url-column 2 --out posters --concurrency 16 --retry-rejected",
        ),
        also=("download", "scrape"),
    ),
    "clean": Command(
        "paint over the text of posters, and check the result",
        "shards.clean.run:CleanOptions",
        "shards.cli.clean:run_clean",
        examples=(
            "clean --images posters --metadata posters.csv --out CLEANED",
            "clean --images posters --metadata posters.csv --out CLEANED --fill telea --drop-duplicates",
        ),
        also=("inpaint", "remove-text", "ocr"),
    ),
    "referee": Command(
        "detect text on cleaned posters, with stricter settings than `posters clean`",
        "shards.clean.verify:RefereeCommand",
        "shards.cli.clean:run_referee",
        examples=("referee --images posters --cleaned CLEANED --sample 200",),
    ),
    "shards": Command(
        "build, describe, verify or index a shard set",
        examples=("shards build --images posters --metadata posters.csv --out SHARDS", "shards info SHARDS"),
        also=("dataset", "data"),
    ),
    "shards build": Command(
        "pack posters and a table of genres into WebDataset shards",
        "shards.build.run:BuildOptions",
        "shards.cli.main:run_build",
        examples=(
            "shards build --images posters --metadata posters.csv --out SHARDS",
            "shards build --images posters --metadata posters.csv --out SHARDS --dry-run",
            "shards build --images posters --metadata films.csv --id-column imdb --genre-column tags --out SHARDS",
            "shards build --images posters --metadata posters.csv --splits 0.7,0.15,0.15 --out SHARDS",
        ),
        also=("make", "pack", "prepare", "preprocess"),
    ),
    "shards info": Command(
        "print counts, genres and sizes of a shard set",
        "shards.cli.main:InfoOptions",
        "shards.cli.main:run_info",
        examples=("shards info SHARDS", "shards info s3://bucket/posters"),
        also=("describe", "stats", "show"),
    ),
    "shards verify": Command(
        "check all bytes, counts and images; exit status 1 if there is a problem",
        "shards.cli.main:VerifyOptions",
        "shards.cli.main:run_verify",
        examples=("shards verify SHARDS",),
        also=("check",),
    ),
    "shards index": Command(
        "make a shard set from tar files of another tool",
        "shards.build.index.tars:IndexOptions",
        "shards.cli.main:run_index",
        "Make a shard set from tar files of another tool. The command writes indexes and a manifest, and does not "
        "change the tar files. It decodes every image once, which takes about 2 ms on one core for 300 x 450 pixels. "
        "rejected.csv lists the samples that cannot be used, with the reasons. After a stop, start the same command "
        "again: it reads only the tars that were not read.",
        examples=(
            "shards index TARS --genre-field genres",
            "shards index TARS --metadata posters.csv --split train",
            "shards index 'https://HOST/SET/train-{000000..000147}.tar' --out SHARDS",
        ),
    ),
    "train": Command(
        "train on a shard set",
        "toolkit.cli.train:TrainOptions",
        "toolkit.cli.train:run_train",
        "Train a multi-label classifier. To use several processes, start `accelerate launch launch/train.py`. "
        "`posters configs` lists the recipes for --config.",
        examples=(
            "train --config best --shards SHARDS --out RUN",
            "train --config best --shards SHARDS --out RUN --resume",
            "train --config resnet50 --optim.lr 0.001 --train.epochs 5 --shards SHARDS --out RUN",
            "train --config my.yaml --model.name convnext_tiny --model.weights FILE --shards SHARDS --out RUN",
            "train --config best --print_config",
        ),
        also=("fit", "finetune", "fine-tune", "run"),
    ),
    "configs": Command(
        "list the recipes for `posters train --config`, or print one",
        "toolkit.cli.configs:ConfigsOptions",
        "toolkit.cli.configs:run_configs",
        examples=("configs", "configs best"),
        also=("config", "recipes", "recipe", "list"),
    ),
    "tune": Command(
        "choose the thresholds and the calibration of a model again on the validation split",
        "toolkit.evaluation.options:TuneOptions",
        "toolkit.evaluation.tune:run_tune",
        examples=("tune --model RUN --shards SHARDS", 'tune --model RUN --shards SHARDS --aim "precision>=0.6"'),
        also=("calibrate", "threshold", "thresholds"),
    ),
    "evaluate": Command(
        "evaluate a model on a split of a shard set",
        "toolkit.evaluation.options:EvaluateOptions",
        "toolkit.cli.run_evaluate:run_evaluate",
        examples=(
            "evaluate --model RUN --shards SHARDS --report REPORT",
            "evaluate --model RUN --shards SHARDS --split val --out metrics.json",
            "evaluate --model RUN --compare RUN2 --shards SHARDS --report REPORT",
        ),
        also=("eval", "val", "validate", "test", "score", "metrics", "report", "benchmark"),
    ),
    "compare": Command(
        "compare several models on a split of a shard set, and write a page",
        "toolkit.comparison.options:CompareOptions",
        "toolkit.comparison.run:run_compare",
        "Compare several models on the same posters. The page says which model to take and whether the difference is "
        "real. All differences are differences to the first model.",
        examples=(
            "compare RUN RUN2 --shards SHARDS --out COMPARISON",
            "compare RUN RUN2 RUN3/model --shards SHARDS --split val --out COMPARISON",
        ),
        also=("versus", "leaderboard", "rank"),
    ),
    "predict": Command(
        "predict the genres of images or of a shard set",
        "toolkit.prediction.options:PredictOptions",
        "toolkit.prediction.files:run_predict",
        examples=(
            "predict --model RUN poster.jpg --verbose",
            "predict --model RUN posters --out genres.csv",
            "predict --model RUN --shards SHARDS --split test --out PREDICTIONS",
        ),
        also=("infer", "inference", "classify", "label", "tag"),
    ),
    "app": Command(
        "serve a web page that predicts the genres of uploaded posters and shows heat maps",
        "toolkit.app.options:AppOptions",
        "toolkit.app.server:run_app",
        examples=("app --model RUN", "app --model RUN --port 8000 --no-text"),
        also=("serve", "server", "ui", "gui", "web", "gradio"),
    ),
    "audit": Command(
        "measure how much a model uses the text on posters",
        "toolkit.audit.options:AuditOptions",
        "toolkit.cli.run_audit:run_audit",
        examples=("audit --model RUN --images posters --cleaned CLEANED --metadata posters.csv --out AUDIT",),
        also=("explain",),
    ),
    "export": Command(
        "export a model as one ONNX or torch.export file",
        "toolkit.export.options:ExportOptions",
        "toolkit.export.run:run_export",
        examples=(
            "export --model RUN --out model.onnx",
            "export --model RUN --preprocess --check posters",
            "export --model RUN --format torch-export",
        ),
        also=("onnx", "convert"),
    ),
    "push": Command(
        "upload a model folder to Hugging Face",
        "toolkit.export.options:PushOptions",
        "toolkit.export.hub:run_push",
        examples=("push --model RUN --repo USER/NAME --private",),
        also=("upload", "publish"),
    ),
    "import": Command(
        "make a model folder from a checkpoint of timm or of the earlier training script",
        "toolkit.export.options:ImportOptions",
        "toolkit.export.import_model:run_import",
        examples=(
            "import --checkpoint model_best.pth.tar --classes classes.txt --out MODEL",
            "import --checkpoint hf://USER/NAME --out MODEL",
            "import --checkpoint weights.safetensors --model-name resnet50 --classes SHARDS/manifest.json --out MODEL",
        ),
        also=("load",),
    ),
    "demo": Command(
        "run all steps on a small set of drawn posters, which takes minutes",
        "toolkit.cli.demo_options:DemoOptions",
        "toolkit.cli.demo:run_demo",
        examples=("demo --out demo", "demo --out small --posters 200"),
        also=("example", "quickstart", "tutorial"),
    ),
}


def read(words: Sequence[str]) -> tuple[str, Any]:
    """Return the name of the command and its options. Raises UserError for bad input. --help prints help and exits."""
    name, rest = choose(COMMANDS, words, POSTERS)
    from shards.cli.options import Parser  # the import is slow, and the list of commands does not need it

    parser = Parser(name, COMMANDS)
    return name, parser.make(parser.parse(rest))
