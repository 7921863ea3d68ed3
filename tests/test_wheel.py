"""The wheel: what is in it, and that it works alone, in a folder without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]
#: Files and folders from which a wheel is built.
SOURCES = ("shards", "toolkit", "launch", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since building leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in filter(lambda name: (ROOT / name).exists(), SOURCES):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "dist").glob("poster_toolkit-*.whl")
    return found


def test_it_has_all_files_of_the_packages_and_no_others(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"shards", "toolkit"}
    for package in ("shards", "toolkit"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {"shards/py.typed", "toolkit/py.typed"} <= names


def test_its_metadata_is_that_of_the_package(wheel: Path):
    import toolkit

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(name).decode())
    assert facts["Version"] == toolkit.__version__ and facts["Requires-Python"] == ">=3.10"
    assert {"app", "clean", "dev", "export", "report"} <= set(facts.get_all("Provides-Extra") or ())
    assert "Operating System :: POSIX" in (facts.get_all("Classifier") or ())


def test_it_works_without_a_checkout(wheel: Path, drawn_posters: Path, tmp_path: Path):
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    env = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words: object) -> str:
        done = subprocess.run([*map(str, words)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(target) in run(sys.executable, "-c", "import toolkit, shards; print(toolkit.__file__)")
    posters = ("--images", drawn_posters / "images", "--metadata", drawn_posters / "metadata.csv")
    build = ("shards", "build", *posters, "--out", "SHARDS", "--max-rejected", "100%", "--workers", "1")
    assert "usable" in run(target / "bin" / "posters", *build)
    assert "Genres (7)" in run(sys.executable, "-m", "toolkit", "shards", "info", "SHARDS")
