"""Make what earlier versions leave on users' disks, in small: python tests/kept/make.py FOLDER

It was run once, with commit a9dae6a, the last one before the modules went into packages; FOLDER is kept as kept.tar.xz.
test_kept.py reads it with the code of now. All commands run inside FOLDER, so that no file names a place outside of it.

    posters/           30 drawn posters and their CSV          links.csv             of posters that nothing may fetch
    set/               shards with tables of samples          set-without-tables/   the same, as version 0.1 wrote sets
    foreign/           tars of another tool, indexed          weights.safetensors   a backbone, random
    finished/          a run that ended                       killed/               a run that was killed in an epoch
    features/          a run on cached features               ensemble/             a run of several members
    predictions/       a batch prediction, killed             cleaned/              a clean, killed
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NETWORK = "test_efficientnet"  # 99,000 weights
#: Of an epoch of these 21 samples.
UPDATES = 3
#: Options of all trainings.
SMALL = [
    "--shards=set", f"--model.name={NETWORK}", "--model.weights=weights.safetensors", "--model.pretrained=false",
    "--data.image_size=32", "--data.workers=1", "--train.batch_size=9", "--train.eval_batch_size=8",
    "--train.epochs=2", "--train.precision=no", "--train.log_steps=1", "--train.keep_checkpoints=1",
    "--train.tensorboard=false",
]  # fmt: skip
#: What the runs differ in.
RUNS = {
    "finished": ["--model.hidden=[8]", "--model.freeze=[stem]"],
    "killed": ["--model.hidden=[8]", "--train.checkpoint_steps=1", "--train.epochs=3", "--train.ema=0.9"],
    "features": ["--model.head=linear", "--model.freeze=[backbone]", "--train.feature_views=2",
                 "--train.feature_cache=features/cache"],
    "ensemble": ["--model.head=ensemble", "--model.members=3", "--model.hidden=[8]", "--model.freeze=[backbone]",
                 "--train.feature_views=1", "--train.feature_cache=features/cache"],
}  # fmt: skip


def main() -> None:
    """Make all of it."""
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]) or os.listdir(sys.argv[1]):
        raise SystemExit("error: give an empty folder: python tests/kept/make.py FOLDER")
    os.chdir(sys.argv[1])
    draw()
    make_sets()
    torch.manual_seed(0)
    save_file(timm.create_model(NETWORK, num_classes=0).state_dict(), "weights.safetensors")
    for name in ("finished", "features", "ensemble"):
        posters("train", *SMALL, *RUNS[name], f"--out={name}")
    while newest_step() % UPDATES == 0:
        shutil.rmtree("killed", ignore_errors=True)
        until(lambda: newest_step() > UPDATES, "train", *SMALL, *RUNS["killed"], "--out=killed")
    until(lambda: any(Path("predictions").glob("*.csv")), "predict", "--shards=set", "--model=finished/model",
          "--out=predictions", "--format=csv", "--batch-size=1", "--workers=1", "--precision=no")  # fmt: skip
    until(lambda: len(list(Path("cleaned").glob("*.jpg"))) >= 3, "clean", "--images=posters/images",
          "--metadata=posters/metadata.csv", "--out=cleaned", "--workers=1", "--max-rejected=1")  # fmt: skip


def newest_step() -> int:
    """Updates in the newest checkpoint of the run that is killed; 0 if there is none."""
    found = Path("killed", "checkpoints").glob("step-????????")
    return max((int(path.name.partition("-")[2]) for path in found), default=0)


def draw() -> None:
    """Posters of 160 x 240 pixels: they are for formats and not for the eye."""
    from PIL import Image

    from shards.inputs.synthetic import draw_poster_set

    draw_poster_set(Path("posters"), 30, seed=3)
    for path in Path("posters", "images").iterdir():
        try:
            Image.open(path).convert("RGB").resize((160, 240)).save(path, quality=85)
        except OSError:
            continue  # one that is spoilt on purpose
    Path("links.csv").write_text("id,url\na,http://127.0.0.1:9/a.jpg\nb,ftp://example.org/b.jpg\nc,\n")


def make_sets() -> None:
    """The set, the same without what later versions added, and tars of another tool."""
    posters("shards", "build", "--images=posters/images", "--metadata=posters/metadata.csv", "--out=set",
            "--samples-per-shard=6", "--splits=0.6,0.2,0.2", "--max-rejected=1", "--workers=1")  # fmt: skip
    shutil.copytree("set", "set-without-tables")
    without = Path("set-without-tables")
    manifest = json.loads((without / "manifest.json").read_text())
    for table in manifest.pop("tables").values():
        (without / table["name"]).unlink()
    for shard in manifest["shards"]:
        shard.pop("index_sha256", None)
    (without / "manifest.json").write_text(json.dumps(manifest))
    Path("foreign").mkdir()
    images = sorted(Path("posters", "images").glob("p000*.jpg"))
    for split, part in {"train": images[:12], "test": images[12:20]}.items():
        with tarfile.open(Path("foreign", f"{split}-0.tar"), "w") as tar:
            for number, path in enumerate(part):
                genres = json.dumps({"genres": ["Drama", "Comedy", "War"][number % 3 :]}).encode()
                for suffix, data in ((".jpg", path.read_bytes()), (".json", genres)):
                    member = tarfile.TarInfo(path.stem + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    posters("shards", "index", "foreign", "--workers=1")


def posters(*words: str) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "toolkit", *words], env=ENV, check=True)


def until(reached: Callable[[], bool], *words: str) -> None:
    """Run a command, and kill it, with its workers, as soon as it has come so far. It must not have ended by then."""
    process = subprocess.Popen([sys.executable, "-m", "toolkit", *words], env=ENV, start_new_session=True)
    try:
        while not reached():
            if process.poll() is not None:
                raise SystemExit(f"{words[0]} ended before it was killed")
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
