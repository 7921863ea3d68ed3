"""data.image_size 0 is the backbone's own size: a number from the start of a run on, for all that comes after."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import yaml
from failing import fails
from timm.models import PretrainedCfg
from toolkit_helpers import ROOT, TINY, error_lines, parse_train, posters_command

from shards.errors import UserError
from toolkit.config.schema import Config
from toolkit.model_folder.folder import load_model_folder
from toolkit.training.checkpoints.checkpoint import newest_checkpoint
from toolkit.training.run import own_size, train, with_own_size

#: An EfficientNet of 160 pixels, from random weights.
NAME, OWN = "test_efficientnet", 160
RECIPE = [*TINY, f"--model.name={NAME}", "--data.image_size=0", "--train.epochs=1"]


def parse(*options: str) -> Config:
    return parse_train(["--shards", "S", "--out", "R", *options]).config


def size_in(path: Path) -> int:
    """data.image_size as a saved config has it."""
    return yaml.safe_load(path.read_text())["data"]["image_size"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet_b4", 320),
        ("resnet50", 224),
        (NAME, OWN),
        # The tag decides: the same architecture, weights of two sizes.
        ("convnext_tiny.in12k_ft_in1k", 224),
        ("convnext_tiny.in12k_ft_in1k_384", 384),
    ],
)
def test_the_size_is_the_one_that_timm_says(name: str, size: int):
    assert own_size(name) == size


@pytest.mark.parametrize(("sides", "size"), [((1024, 768), 1024), ((256, 448), 448)])
def test_the_larger_side_where_it_is_not_square(sides: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_, **__: PretrainedCfg(input_size=(3, *sides)))
    assert own_size("any") == size


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet_b44", "did you mean efficientnet_b4"),
        ("resnet50.no_such_tag", "'resnet50.no_such_tag'"),
        ("not-a-model-at-all", "--data.image_size 224"),
    ],
)
def test_a_name_without_a_size_is_one_line(name: str, words: str):
    with fails("option-value", "data.image_size 0", words):
        own_size(name)


def test_a_configuration_without_a_size_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_, **__: PretrainedCfg(input_size=None))  # type: ignore[arg-type]
    with fails("option-value", "'resnet50'"):
        own_size("resnet50")


def test_on_the_command_line_it_ends_before_anything_is_written(shard_set: Path, tmp_path: Path):
    out = tmp_path / "run"
    run = posters_command("train", "--shards", shard_set, "--out", out, *RECIPE, "--model.name=resnet5O")
    (line,) = error_lines(run)
    assert run.returncode == 2 and "did you mean resnet50" in line and not out.exists()


def test_a_size_that_is_given_wins(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"model: {{name: {NAME}}}\ndata: {{image_size: 0}}\n")
    recipe = ["--config", str(tmp_path / "c.yaml")]
    assert with_own_size(parse(*recipe)).data.image_size == OWN
    assert with_own_size(parse(*recipe, "--model.name=efficientnet_b4")).data.image_size == 320
    both = with_own_size(parse(*recipe, "--model.name=efficientnet_b4", "--data.image_size=48"))
    assert (both.model.name, both.data.image_size) == ("efficientnet_b4", 48)


@pytest.mark.parametrize("size", ["-1", "1", "15"])
def test_what_is_no_size_is_still_refused(size: str):
    with pytest.raises(UserError, match=r"data\.image_size must be"):
        parse(f"--data.image_size={size}")


@pytest.mark.parametrize("name", ["poster_convnext", "poster_vit_clip"])
def test_recipes_of_other_backbones_take_their_size(name: str):
    config = parse("--config", str(ROOT / "configs" / f"{name}.yaml"))
    assert config.data.image_size == 0 and with_own_size(config).data.image_size == 224


def test_a_run_sees_and_keeps_a_number(
    shard_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, one_thread: None
):
    out = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        assert train(parse(*RECIPE), shard_set, out) == 0
    assert f"data.image_size is {OWN}, the size at which {NAME} was trained" in caplog.text
    assert size_in(out / "config.yaml") == OWN
    assert load_model_folder(out / "model").preprocessing.image_size == OWN
    checkpoint = newest_checkpoint(out / "checkpoints")
    assert checkpoint is not None and checkpoint.config["data"]["image_size"] == OWN

    # The same command goes on, and so do the saved config and the size itself; another size is another run.
    caplog.clear()
    saved = ["--config", str(out / "config.yaml")]
    for epochs, options in enumerate((RECIPE, [*RECIPE, f"--data.image_size={OWN}"], saved), 2):
        assert train(parse(*options, f"--train.epochs={epochs}"), shard_set, out, resume=True) == 0
        assert size_in(out / "config.yaml") == OWN
        assert len((out / "epochs.csv").read_text().splitlines()) == 1 + epochs
    assert "data.image_size 0" not in caplog.text
    with fails("run-differs", "data.image_size 64", 160):
        train(parse(*RECIPE, "--data.image_size=64"), shard_set, out, resume=True)
