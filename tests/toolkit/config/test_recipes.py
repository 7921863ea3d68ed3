"""Recipes by name: each file says its name and use in its first line, and ``posters configs`` lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from failing import fails
from toolkit_helpers import ROOT, parse_train

from toolkit.cli.main import main
from toolkit.config.recipes import config_path, recipes

NAMES = ["best", "convnext", "cpu", "demo", "gpus", "linear-probe", "resnet50", "vit-clip"]


def test_all_files_are_recipes_with_a_name_and_a_sentence():
    assert [recipe.name for recipe in recipes()] == NAMES
    assert {recipe.path.name for recipe in recipes()} == {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert all(re.fullmatch(r"[A-Z].{20,105}\.", recipe.about) for recipe in recipes())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_as_its_file(name: str):
    run = ["--shards", "S", "--out", "O"]
    by_file = parse_train(["--config", str(config_path(name)), *run]).config
    assert parse_train(["--config", name, *run]).config == by_file
    assert parse_train([f"--config={name}", *run]).config == by_file


def test_other_names_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Paths of a checkout also work where there is no configs/."""
    monkeypatch.chdir(tmp_path)
    probe = config_path("linear-probe")
    for name in ("linear_probe", "Linear-Probe", "configs/linear_probe.yaml", "linear_probe.yaml"):
        assert config_path(name) == probe


def test_a_file_is_used_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("best").mkdir()
    assert config_path("best").name == "poster_resnet50_best.yaml"  # not the folder
    Path("best").rmdir()
    Path("best").write_text("optim: {lr: 0.5}\n")
    assert parse_train(["--config", "best", "--shards", "S", "--out", "O"]).config.optim.lr == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bst", ["not found: bst", "did you mean 'best'?", "best, convnext, cpu"]),
        ("poster_resnet5O", ["did you mean 'resnet50'?"]),
        ("my/best.yaml", ["not found: my/best.yaml"]),
        ("xyzzy", ["not found: xyzzy; the recipes are best"]),
        ("", ["not found"]),
        ("s3://bucket/best", ["not found", "the recipes are"]),
        ("a\nb\x1b[2J", [r"a\nb\x1b[2J"]),
    ],
)
def test_a_wrong_name(name: str, words: list[str]):
    with fails("config-file", *words):
        config_path(name)


def test_a_run_folder_is_no_configuration(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    with fails("config-file", "is a run folder, not a configuration", tmp_path / "config.yaml"):
        config_path(str(tmp_path))


def test_the_list_and_a_file(capsys: pytest.CaptureFixture[str]):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[: len(NAMES)]] == NAMES and "Start here" in listed
    assert main(["configs", "cpu"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "poster_cpu.yaml").read_text(encoding="utf-8")
    with fails("config-file", "did you mean 'demo'?"):
        main(["configs", "demoo"])


@pytest.mark.parametrize(("name", "fact"), [("t.csv", "is a table, not a configuration"), ("t.conf", "cannot be read")])
def test_a_file_that_is_no_configuration_is_not_printed(
    name: str, fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with fails("config-file", tmp_path / name, fact):
        main(["configs", str(tmp_path / name)])
    assert capsys.readouterr().out == ""
