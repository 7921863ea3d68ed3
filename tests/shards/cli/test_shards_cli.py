"""`posters shards ...` as people type it: one line for every mistake, and tables for what is right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_tools import Source, build_command, environment, only_error, posters, read_csv, tree, write_csv, write_file

pytest_plugins = ("shard_fixtures",)

Command = Callable[..., tuple[int, str, str]]

#: Arguments (folders are filled in) and what the one line must say.
MISTAKES: dict[str, tuple[str, list[str]]] = {
    "unknown verb": ("shards biuld", ["biuld", "build"]),
    "nothing required": ("shards build", ["--out"]),
    "no CSV": ("shards build --images {images} --metadata {tmp}/no.csv --out {tmp}/o", ["not found", "{tmp}/no.csv"]),
    "CSV is a folder": ("shards build --images {images} --metadata {tmp} --out {tmp}/o", ["has no genres"]),
    "no image folder": ("shards build --images {tmp}/no --metadata {csv} --out {tmp}/o", ["not found", "{tmp}/no"]),
    "folder without images": ("shards build --images {empty} --metadata {csv} --out {tmp}/o", ["no .jpg", "{empty}"]),
    "no column": ("{build} --genre-column genres", ["did you mean 'genre'", "--genre-column"]),
    "no column number": ("{build} --id-column 9", ["no column number 9", "0 'id'"]),
    "wrong separator": ("shards build --images {images} --metadata {commas} --out {tmp}/o", ["--genre-separator ','"]),
    "wrong encoding": (
        "shards build --images {images} --metadata {latin} --encoding ascii --out {tmp}/o",
        ["is not ascii text", "--encoding"],
    ),
    "unknown encoding": ("{build} --encoding klingon", ["unknown text encoding 'klingon'"]),
    "misspelt option": ("{build} --sample-per-shards 5", ["argument --sample-per-shards", "--samples-per-shard?"]),
    "misspelt with value": ("{build} --qualty=80", ["unknown argument --qualty=80", "did you mean --quality?"]),
    "of another command": ("{build} --threshold 0.5", ["unknown argument --threshold: only other commands"]),
    "word for number": ("{build} --workers many", ["--workers", "many"]),
    "negative workers": ("{build} --workers -1", ["--workers must be 0"]),
    "no posters a shard": ("{build} --samples-per-shard 0", ["--samples-per-shard must be at least 1"]),
    "two shares": ("{build} --splits 0.9,0.1", ["--splits needs three shares"]),
    "shares that are words": ("{build} --splits most,some,few", ["--splits", "most,some,few"]),
    "shares over one": ("{build} --splits 0.9,0.1,0.1", ["--splits", "sum to 1"]),
    "near duplicates": ("{build} --near-duplicates 40", ["--near-duplicates must be from 0 to 15"]),
    "quality": ("{build} --quality 100", ["--quality must be from 1 to 95"]),
    "sides": ("{build} --short-side 600", ["--short-side", "--long-side 512"]),
    "labels absent": ("{build} --labels {tmp}/labels.json", ["labels file not found"]),
    "labels are a CSV": ("{build} --labels {csv}", ["labels file", "meta.csv"]),
    "out is a file": ("shards build --images {images} --metadata {csv} --out {csv}", ["is a file; choose another"]),
    "out is a run": ("shards build --images {images} --metadata {csv} --out {run}", ["{run} is a run folder, so no s"]),
    "out holds other shards": ("{rebuild} --seed 9", ["already contains other shards", "--overwrite"]),
    "info without a set": ("shards info {tmp}/no", ["no shard folder at {tmp}/no", "posters shards build --out"]),
    "info of posters": ("shards info {empty}", ["has no manifest.json", "posters shards index"]),
    "verify without a set": ("shards verify {empty}", ["has no manifest.json"]),
    "index without a folder": ("shards index {tmp}/no", ["no such folder"]),
    "index without tars": ("shards index {empty}", ["no .tar file in"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(few: Source, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "run" / "model").mkdir(parents=True)
    (folder / "run" / "config.yaml").touch()
    commas = write_csv(folder / "commas.csv", [("p0000", "", "", "Drama, Comedy")])
    latin = write_file(folder / "latin.csv", "id,t,y,genre\np0000,x,1,Comédie\n".encode("latin-1"))
    shutil.copytree(few_shards, folder / "shards")
    start = f"shards build --images {few.images} --metadata {few.csv} --workers 1"
    return {
        "tmp": str(folder),
        "run": str(folder / "run"),
        "empty": str(folder / "empty"),
        "images": str(few.images),
        "csv": str(few.csv),
        "commas": str(commas),
        "latin": str(latin),
        "build": f"{start} --out {folder}/o",
        "rebuild": f"{start} --out {folder}/shards",
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(command: Command, places: dict[str, str], mistake: str) -> None:
    arguments, parts = MISTAKES[mistake]
    status, out, err = command(*arguments.format(**places).split())
    line = only_error(err)
    assert status == 2 and out == ""
    assert all(part.format(**places) in line for part in parts), line
    assert not list(Path(places["tmp"]).glob("o/*.tar"))


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = posters("shards", "info", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == only_error(done.stderr) + "\n"


def test_build_info_and_verify(few: Source, tmp_path: Path, command: Command) -> None:
    status, built, err = command(*build_command(few, tmp_path / "out", "--workers", 1))
    assert status == 0 and "error" not in err
    assert "30 of 30 posters are usable" in err
    status, shown, err = command("shards", "info", tmp_path / "out")
    assert (status, err) == (0, "")
    assert built.startswith(shown) and f"shards          {tmp_path / 'out'}" in built
    status, verified, _ = command("shards", "verify", tmp_path / "out", "--workers", 1)
    assert status == 0 and verified.strip().endswith("30 samples, all decoded")


def test_rejected_rows_are_counted_and_located(source: Source, tmp_path: Path, command: Command) -> None:
    status, out, _ = command(*build_command(source, tmp_path / "out", "--workers", 1))
    assert status == 0
    assert sum(map(int, re.findall(r"(\d+) [a-z]", re.findall(r"rejected rows +(.*)", out)[0]))) == len(source.bad)
    assert f"rejected        {tmp_path / 'out' / 'rejected.csv'}" in out


def test_every_option_reaches_the_build(few: Source, tmp_path: Path, command: Command) -> None:
    rows = [(" ".join(genres), name) for name, genres in few.good.items()]
    table = write_csv(tmp_path / "other.csv", rows, ("kinds", "poster"))
    (tmp_path / "labels.json").write_text('{"genres": ["Drama", "Comedy", "Action"]}')
    options = (
        f"--id-column poster --genre-column kinds --splits 0.5,0.25,0.25 --seed 4 --samples-per-shard 3 "
        f"--near-duplicates 0 --short-side 40 --long-side 50 --quality 70 --min-side 20 --max-pixels 10000 "
        f"--labels {tmp_path / 'labels.json'} --workers 1 --encoding utf-8 --aspect 0.1,9"
    )
    where = ("--images", few.images, "--metadata", table, "--out", tmp_path / "out")
    status, _, err = command("shards", "build", *where, *options.split(), "--genre-separator", " ")
    assert status == 0, err
    raw = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert raw["packing"] == {
        "short_side": 40,
        "long_side": 50,
        "quality": 70,
        "min_side": 20,
        "max_pixels": 10000,
        "aspect": [0.1, 9.0],
        "samples_per_shard": 3,
        "text_removal": None,
    }
    assert raw["labels"]["genres"] == ["Drama", "Comedy", "Action"]
    assert raw["source"]["id_column"] == "poster" and raw["source"]["genre_column"] == "kinds"
    assert raw["source"]["fractions"] == {"train": 0.5, "val": 0.25, "test": 0.25}
    assert (raw["source"]["seed"], raw["source"]["near_duplicates"]) == (4, 0)
    assert {shard["max_height"] for shard in raw["shards"]} == {50}


@pytest.mark.parametrize("verb", ["", "build", "info", "verify", "index"])
def test_help(command: Command, verb: str) -> None:
    status, out, err = command("shards", *([verb] if verb else []), "--help")
    assert status == 0 and err == "" and out.startswith("usage: posters shards")


def test_names_from_a_csv_reach_no_terminal_and_no_spreadsheet(few: Source, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images"
    shutil.copytree(few.images, images)
    names = sorted(few.good)
    rows = [(name, "t", 1999, "['Drama']") for name in names[:-1]]
    rows += [(names[-1], "t", 1999, "['Drama', '\x1b[31mred']")]
    rows += [("=1+1", "t", 1999, "['War']"), ("@x", "t", 1999, "['War']"), ("\x1b[2J", "t", 1999, "['War']")]
    for name in ("=1+1", "@x"):
        shutil.copy(images / f"{names[0]}.jpg", images / f"{name}.jpg")
    write_file(images / "=cut.jpg", b"")
    rows += [("=cut", "t", 1999, "['War']")]
    out = tmp_path / "out"
    status, said, logged = command(
        *("shards", "build", "--images", images, "--metadata", write_csv(tmp_path / "meta.csv", rows)),
        *("--out", out, "--workers", 1, "--max-rejected", "50%"),
    )
    assert status == 0 and "\x1b" not in said + logged
    status, said, logged = command("shards", "info", out)
    assert status == 0 and "\x1b" not in said + logged
    assert {"'=1+1", "'@x"} < {row["id"] for row in read_csv(out / "duplicates.csv")}
    assert "'=cut" in {row["id"] for row in read_csv(out / "rejected.csv")}


def test_output_into_a_closed_pipe_is_no_traceback(few_shards: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "shards", "info", str(few_shards)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait()
    assert "Traceback" not in stderr and len(stderr.splitlines()) <= 1


def test_reading_commands_change_nothing(few_shards: Path, command: Command) -> None:
    before = tree(few_shards)
    command("shards", "info", few_shards)
    command("shards", "verify", few_shards, "--workers", 1)
    assert tree(few_shards) == before
