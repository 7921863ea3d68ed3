"""The commands of README.md and of docs/get-started/your-posters.md run as they stand, on drawn posters."""

from __future__ import annotations

import ast
import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from forked import ROOT, run_forked
from toolkit_helpers import clean_env, weights_option

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "get-started" / "your-posters.md").read_text(encoding="utf-8")
#: Pages of the first hour. test_your_data.py runs the one about data.
STARTED = sorted((ROOT / "docs" / "get-started").glob("*.md"))
#: A backbone that needs no download, and a training of seconds.
SMALL = ["--model.name=test_resnet", "--data.image_size=64", "--data.workers=1", "--train.epochs=3"]
#: The id of the poster that the page names.
NAMED = "tt0111161"


def lines(page: str) -> list[str]:
    """The lines of a page's blocks of code without a language, comments taken away."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", page, re.M | re.S)
    found = [line.strip().partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in found if line]


def commands(page: str) -> list[str]:
    return [line for line in lines(page) if line.startswith("posters ")]


@pytest.fixture(scope="module")
def folder(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page begins with: posters/ and posters.csv, in the form that the page shows."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "posters").mkdir()
    rows = []
    for row in csv.DictReader((drawn_posters / "metadata.csv").open(encoding="utf-8")):
        if not row["poster_id"].startswith("bad_"):
            name = NAMED if row["poster_id"] == "p00000" else row["poster_id"]
            (image,) = (drawn_posters / "images").glob(f"{row['poster_id']}.*")
            shutil.copy(image, folder / "posters" / f"{name}{image.suffix}")
            rows.append(f"{name},{'|'.join(ast.literal_eval(row['genre']))}")
    (folder / "posters.csv").write_text("\n".join(["id,genre", *rows, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, CompletedProcess[str]]:
    """All commands of the page, run once."""
    found = {}
    for command in commands(PAGE):
        words = shlex.split(command)[1:]
        small = [*SMALL, weights_option()] if words[0] == "train" else []
        found[command] = run_forked(["-m", "toolkit", *words, *small], [clean_env()], 240, folder)
    return found


@pytest.mark.parametrize("command", commands(PAGE))
def test_a_command_of_the_page_runs(command: str, runs: dict[str, CompletedProcess[str]]):
    assert runs[command].returncode == 0, runs[command].stderr


def test_the_commands_leave_what_the_pages_say(folder: Path, runs: dict[str, CompletedProcess[str]]):
    assert runs
    for name in ("SHARDS/rejected.csv", "RUN/model/model.safetensors", "REPORT/index.html"):
        assert (folder / name).exists(), name
    with (folder / "genres.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == len(list((folder / "posters").iterdir()))


def test_the_guide_goes_on_with_new_genres(folder: Path, runs: dict[str, CompletedProcess[str]]):
    """On the same posters, with a genre more and a genre less than the run of the page has."""
    assert runs
    (folder / "new-posters").symlink_to(folder / "posters")
    rows = [line.replace("War", "Noir") for line in (folder / "posters.csv").read_text(encoding="utf-8").splitlines()]
    (folder / "new-posters.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    guide = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    section = guide.partition("## Go on with new genres")[2].partition("\n## ")[0]
    for command in commands(section):
        words = shlex.split(command)[1:]
        done = run_forked(["-m", "toolkit", *words, *SMALL * (words[0] == "train")], [clean_env()], 240, folder)
        assert done.returncode == 0, done.stderr
    assert "1 new (Noir), 1 left out (War)" in done.stderr and (folder / "NEW-RUN" / "model").is_dir()


def test_the_page_trains_another_backbone(folder: Path, runs: dict[str, CompletedProcess[str]]):
    """From random weights, at a small size."""
    assert runs
    (command,) = commands((ROOT / "docs" / "guides" / "customise.md").read_text(encoding="utf-8"))
    words = shlex.split(command)[1:]
    small = ["--model.pretrained=false", "--data.image_size=64", "--data.workers=1", "--train.epochs=1"]
    done = run_forked(["-m", "toolkit", *words, *small], [clean_env()], 240, folder)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "CONVNEXT" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "convnext_tiny"


@pytest.mark.parametrize("page", ["README.md", "docs/reference/python.md"])
def test_the_python_of_a_page_runs(
    page: str, folder: Path, runs: dict[str, CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
):
    """In a folder with a trained model and the images that the page names. Signatures are not run."""
    assert runs
    for name in ("poster.jpg", "another.jpg"):
        shutil.copy(folder / "posters" / f"{NAMED}.jpg", folder / name)
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(import .*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_commands_of_the_readme_are_those_of_the_page():
    assert commands(README) and set(commands(README)) <= set(commands(PAGE))


def test_other_commands_are_those_of_the_makefile():
    """They cannot run inside of a test: they make a virtual environment, or run all tests."""
    makefile = (ROOT / "Makefile").read_text()
    extras = (ROOT / "setup.cfg").read_text()
    pages = [README, *(path.read_text(encoding="utf-8") for path in STARTED if path.name != "your-data.md")]
    for line in {line for page in pages for line in lines(page)} - {line for page in pages for line in commands(page)}:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile, line
        elif line.startswith("bash "):
            assert (ROOT / line.split()[1]).exists(), line
        elif line.startswith("pip "):
            # tests/test_wheel.py builds and installs the wheel
            known = ("pip wheel --no-deps -w dist .", "pip install dist/poster_toolkit-*.whl")
            assert line in (*known, "pip install -c constraints.txt -e .")
            assert "pip install --quiet --no-compile $(CONSTRAINTS) -e ." in makefile
        else:
            assert line in ("python3 -m venv .venv && . .venv/bin/activate", "id,genre") or NAMED in line or "|" in line
    for names in re.findall(r"'poster-toolkit\[([\w,]+)\]'", "\n".join(pages)):
        assert all(f"\n{name} =\n" in extras for name in names.split(","))


def test_the_pages_are_short():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(README.splitlines()) <= 120 and len(contributing.splitlines()) <= 50
