"""Forty commands on what earlier versions left, and what each of them came to: python tests/kept/commands.py

It runs them in a copy of kept.tar.xz and writes expected.json, which test_kept.py compares with what they come to now.
Each word of a command is what a user types; files are named in the folder of kept.tar.xz, in which all commands run.
"""

from __future__ import annotations

import json
import lzma
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "toolkit")]

from forked import run_forked  # noqa: E402
from toolkit_helpers import clean_env  # noqa: E402

from shards.errors import UserError  # noqa: E402
from shards.inputs.duplicates import MAX_DISTANCE  # noqa: E402
from shards.storage.files import sha256_file  # noqa: E402

CSV = "--metadata=posters/metadata.csv"
ON_SET = "--shards=set --workers=1 --precision=no"
TRAIN = (
    "train --shards=set --model.name=test_efficientnet --model.weights=weights.safetensors --model.pretrained=false"
    " --data.image_size=32 --data.workers=1 --train.batch_size=9 --train.eval_batch_size=8 --train.precision=no"
    " --train.log_steps=1 --train.tensorboard=false --train.keep_checkpoints=1 --model.hidden=[8]"
)
CACHED = "--model.freeze=[backbone] --train.feature_cache=features/cache --train.epochs=2"
CLEAN = f"clean --images=posters/images {CSV} --workers=1 --max-rejected=1"
BUILD = f"shards build --images=posters/images {CSV} --max-rejected=1 --workers=1"


@dataclass(frozen=True)
class Command:
    """What is typed, and patterns of the files that it is to leave or to have left alone."""

    words: str
    files: tuple[str, ...] = ()
    long: bool = False
    """It works on cleaned posters, which takes a minute."""


#: In this order, in one folder: some read what others wrote.
COMMANDS = {
    # Sets.
    "info": Command("shards info set"),
    "info without tables": Command("shards info set-without-tables"),
    "info of foreign tars": Command("shards info foreign"),
    "verify": Command("shards verify set --workers=1"),
    "verify without tables": Command("shards verify set-without-tables --workers=1"),
    "verify foreign tars": Command("shards verify foreign --workers=1"),
    "build again": Command(
        f"{BUILD} --out=set --samples-per-shard=6 --splits=0.6,0.2,0.2", ("set/*.tar", "set/*.npy")
    ),
    "build another": Command(
        f"{BUILD} --out=new --splits=0.5,0.25,0.25 --seed=2", ("new/*.tar", "new/rejected.csv")
    ),
    "build like": Command(f"{BUILD} --out=like --split-like=set", ("like/*.tar",)),
    "build with labels": Command(f"{BUILD} --out=labels --labels=finished/model/labels.json", ("labels/*.tar",)),
    "index again": Command("shards index foreign --workers=1", ("foreign/*.tar", "foreign/*.npy")),
    # Posters.
    "clean goes on": Command(f"{CLEAN} --out=cleaned", ("cleaned/*.csv", "cleaned/p0000[0-2].jpg"), long=True),
    "clean again": Command(f"{CLEAN} --out=cleaned", long=True),
    "referee": Command(
        "referee --images=posters/images --cleaned=cleaned --sample=3 --workers=1 --json=referee.json", long=True
    ),
    "fetch": Command(
        "fetch --metadata=links.csv --url-column=url --out=fetched", ("fetched/*.csv",)
    ),
    # Training.
    "train": Command(f"{TRAIN} --train.epochs=1 --out=trained", ("trained/epochs.csv",)),
    "train from a config": Command(
        "train --config=finished/config.yaml --train.epochs=1 --shards=set --out=again", ("again/epochs.csv",)
    ),
    "resume what is finished": Command(
        f"{TRAIN} --model.freeze=[stem] --train.epochs=2 --out=finished --resume",
        ("finished/*.csv", "finished/model/model.safetensors"),
    ),
    "resume as another": Command(
        f"{TRAIN} --train.epochs=3 --train.ema=0.9 --loss.smoothing=0.1 --out=killed --resume"
    ),
    "resume what was killed": Command(
        f"{TRAIN} --train.checkpoint_steps=1 --train.epochs=3 --train.ema=0.9 --out=killed --resume",
        ("killed/epochs.csv", "killed/log.csv"),
    ),
    "resume on features": Command(
        f"{TRAIN} {CACHED} --model.head=linear --model.hidden=[1024,512] --train.feature_views=2"
        " --out=features --resume",
        ("features/cache/*", "features/epochs.csv"),
    ),
    "train on features": Command(
        f"{TRAIN} {CACHED} --model.head=linear --train.feature_views=2 --out=probe",
        ("features/cache/*", "probe/epochs.csv"),
    ),
    "find a rate": Command(f"{TRAIN} --out=rates --find-lr"),
    "a misspelt key": Command(f"{TRAIN} --train.epocs=1 --out=x"),
    "a key out of range": Command(f"{TRAIN} --train.ema=2 --out=x"),
    # Decisions and figures.
    "evaluate": Command(f"evaluate {ON_SET} -m finished/model -o finished.json", ("finished.json",)),
    "evaluate on validation": Command(
        f"evaluate {ON_SET} -m killed/model --split=val -o killed.json", ("killed.json",)
    ),
    "evaluate what has no tables": Command(
        "evaluate --shards=set-without-tables --workers=1 -m features/model -o features.json", ("features.json",)
    ),
    "evaluate an ensemble": Command(f"evaluate {ON_SET} -m ensemble/model -o ensemble.json", ("ensemble.json",)),
    "evaluate on other labels": Command("evaluate --shards=foreign -m finished/model"),
    "tune": Command(f"tune {ON_SET} -m ensemble/model --aim=f0.5 --thresholds=global", ("ensemble/model/labels.json",)),
    # Predictions.
    "predict on": Command(
        "predict --shards=set --model=finished/model --out=predictions --format=csv --batch-size=1 --workers=1"
        " --precision=no", ("predictions/*.csv",),
    ),
    "predict posters": Command("predict -d posters/images -m ensemble/model -o posters.json", ("posters.json",)),
    "predict a poster": Command("predict -i posters/images/p00003.jpg -m features/model -v"),
    "predict with embeddings": Command(
        f"predict {ON_SET} -m killed/model --tta=flip --embeddings -o embedded", ("embedded/*.parquet",)
    ),
    "predict a file that is none": Command("predict -i posters/none.jpg -m features/model"),
    # Models.
    "export": Command("export -m finished/model"),
    "predict by onnx": Command(
        "predict -d posters/images -m finished/model --onnx -o onnx.csv", ("onnx.csv",)
    ),
    "audit": Command(
        f"audit -m finished/model --images=posters/images --cleaned=cleaned {CSV} --controls=2 --workers=1 -o audit",
        ("audit/*.json",), long=True,
    ),
    "import what is none": Command("import --checkpoint=weights.safetensors -o imported"),
}  # fmt: skip


def unpack(folder: Path) -> None:
    """The kept files, in ``folder``."""
    with lzma.open(HERE / "kept.tar.xz") as stream, tarfile.open(fileobj=stream) as tar:
        tar.extractall(folder, filter="data")


def results(folder: Path, long: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it came to) of the commands that take long, or of all others, one after the other in ``folder``."""
    for name, command in COMMANDS.items():
        if command.long != long:
            continue
        words = command.words.split()
        run = run_forked(["-m", "toolkit", *words], [clean_env() | {"CUDA_VISIBLE_DEVICES": ""}], 240, folder)
        yield (
            name,
            {
                "status": run.returncode,
                "options": options_of(words, folder),
                "said": said(run.stdout, folder),
                "errors": [line for line in said(run.stderr, folder) if line.startswith("error: ")],
                "files": {
                    path.relative_to(folder).as_posix(): content(path)
                    for pattern in command.files
                    for path in sorted(folder.glob(pattern))
                },
            },
        )


def said(text: str, folder: Path) -> list[str]:
    """Its lines, without the place of the folder and without those of how fast it went."""
    lines = text.replace(f"{folder}/", "").splitlines()
    return [line.rstrip() for line in lines if not line.startswith(("seconds ", "speed "))]


#: What options were called when expected.json was written, by command and their names of today.
REMOTE = {"remote_timeout": "patience"}
BEFORE = {
    "tune": {"threads": "workers", "max_micro_f_loss": "slack", **REMOTE},
    "evaluate": {"threads": "workers", **REMOTE},
    "predict": {"threads": "workers", "out": "output", **REMOTE},
    "audit": {"threads": "workers"},
    **{key: {"scales": "looks", "break_lock": "take_over"} for key in ("fetch", "clean", "shards build")},
    **dict.fromkeys(("shards info", "shards verify"), REMOTE),
}


def options_of(words: list[str], folder: Path) -> Any:
    """What a command's parser makes of its words, under the names of then; None where it refuses them."""
    from shards.cli.commands import choose
    from shards.cli.options import Parser
    from toolkit.cli.commands import COMMANDS, POSTERS
    from toolkit.config.io import config_dict

    name, rest = choose(COMMANDS, [word.replace("--config=", f"--config={folder}/") for word in words], POSTERS)
    parser = Parser(name, COMMANDS)
    try:
        parsed = parser.parse(rest)
        made = parser.make(parsed) if name == "train" else None  # others may look for the folders that they name
    except UserError:
        return None
    if made is not None:
        found = vars(made) | {"config": config_dict(made.config)}
        assert found.pop("trust_code") == ()  # an option of later
        return {key: plain(value) for key, value in found.items()} | {
            "cache": str(made.cache).replace("remote_timeout", "patience")
        }
    command, _, verb = name.partition(" ")
    found = vars(parsed) | {"command": command} | ({"verb": verb} if verb else {})
    if name == "referee":
        found["no_anchor"] = not found.pop("reference_strip")
    if name == "predict":
        assert found.pop("images") == []  # images without an option came later
    if name == "shards index":
        (found["folder"],) = found["folder"]  # several tars came later
        found["genre_field"] = found["genre_field"] or "genres"  # today the default is .cls, or else this field
    if found.get("near_duplicates") == MAX_DISTANCE:
        found["near_duplicates"] = None  # the default was put in later
    return {BEFORE.get(name, {}).get(key, key): plain(value) for key, value in found.items()}


def defaults_of(words: list[str]) -> dict[str, Any]:
    """What a command's options are where nothing is typed, under the names of then."""
    from shards.cli.commands import choose
    from shards.cli.options import Parser
    from toolkit.cli.commands import COMMANDS, POSTERS

    name = choose(COMMANDS, words, POSTERS)[0]
    found = vars(Parser(name, COMMANDS).get_defaults())
    return {BEFORE.get(name, {}).get(key, key): plain(value) for key, value in found.items()}


def plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def content(path: Path) -> Any:
    """What a file says: tables and JSON as their values, all else by its digest."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix in (".csv", ".parquet"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)
        return {
            column: [plain(v.tolist() if isinstance(v, np.ndarray) else v) for v in table[column].tolist()]
            for column in table
        }
    return sha256_file(path)


def main() -> None:
    """Write expected.json."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        found = dict(results(Path(folder), False)) | dict(results(Path(folder), True))
    (HERE / "expected.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
