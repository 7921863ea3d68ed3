"""One source of options: dataclass, YAML and command line agree, and a wrong key names the nearest right one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from toolkit_helpers import ROOT, posters_command

from shards.errors import UserError
from toolkit.config import Config
from toolkit.config_cli import config_dict, config_keys, parse_train, save_config
from toolkit.demo import demo_config

RUN = ["--shards", "S", "--out", "R"]


def parse(*arguments: str) -> Config:
    return parse_train([*RUN, *arguments]).config


def error(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_of_every_kind():
    config = parse(
        "--optim.lr=1e-3", "--train.epochs", "3", "--data.image_size", "128", "--model.weights", "w.safetensors",
        "--model.pretrained=false", "--model.freeze=[stem, layer1]", "--data.crop_scale=[0.5, 1.0]",
        "--train.precision=no",
    )  # fmt: skip
    assert (config.optim.lr, config.train.epochs, config.data.image_size) == (0.001, 3, 128)
    assert config.model.weights == "w.safetensors" and config.model.pretrained is False
    assert tuple(config.model.freeze) == ("stem", "layer1") and tuple(config.data.crop_scale) == (0.5, 1.0)
    assert config.train.precision == "no"


def test_the_command_line_wins_over_yaml(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("optim: {lr: 0.5, name: sgd}\nshards: elsewhere\n")
    command = parse_train(["--config", str(tmp_path / "c.yaml"), *RUN, "--optim.lr", "0.25", "--resume"])
    assert (command.config.optim.lr, command.config.optim.name) == (0.25, "sgd")
    assert (command.shards, command.out) == (Path("S"), Path("R"))
    assert command.resume and not command.find_lr
    assert parse_train([*RUN, "--find-lr"]).find_lr
    with pytest.raises(UserError, match="--find-lr"):
        parse_train([*RUN, "--find-lr", "--resume"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.lrr", "1"], ["'optim.lrr'", "did you mean 'optim.lr'"]),
        (["--optimm.lr", "1"], ["did you mean 'optim.lr'"]),
        (["--epochs", "3"], ["did you mean 'train.epochs'"]),
        (["--optim.lr", "fast"], ["optim.lr", "expected float", "fast"]),
        (["--train.epochs", "2.5"], ["train.epochs", "int"]),
        (["--optim.name", "adm"], ["optim.name", "did you mean", "adam"]),
        (["--decide.aim", "precision"], ["decide.aim", "precision>=X"]),
        (["--decide.slack", "1"], ["decide.slack", "under 1"]),
        (["--train.epochs", "0"], ["train.epochs", "at least 1", "0"]),
        (["--data.crop_scale", "[0.9, 0.1]"], ["data.crop_scale"]),
        (["--data.crop_scale", "[0.9]"], ["data.crop_scale"]),
        (["--optim.lr", "-1"], ["optim.lr", "positive"]),
        (["--optim.lr", "nan"], ["optim.lr"]),
        (["--optim.momentum", "-3"], ["optim.momentum", "at least 0"]),
        (["--optim.momentum", "1"], ["optim.momentum", "under 1"]),
        (["--augment.mixup", "0.2", "--train.batch_size", "1"], ["train.batch_size", "at least 2", "mixup"]),
        (["--config", "none.yaml"], ["none.yaml"]),
        (["stray"], ["stray"]),
    ],
)
def test_wrong_options(arguments: list[str], words: list[str]):
    message = error(*arguments)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lrr: 1}", ["'optim.lrr'", "did you mean 'optim.lr'"]),
        ("optimm: {lr: 1}", ["did you mean 'optim.lr'"]),
        ("optim: {lr: fast}", ["optim.lr", "fast"]),
        ("optim: [1", ["c.yaml"]),
        ("just words", ["c.yaml"]),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, words: list[str]):
    (tmp_path / "c.yaml").write_text(text)
    message = error("--config", str(tmp_path / "c.yaml"))
    for word in words:
        assert word in message, message


def test_folders_are_needed():
    with pytest.raises(UserError, match="--shards is missing"):
        parse_train(["--out", "R"])
    with pytest.raises(UserError, match="--out is missing"):
        parse_train(["--shards", "S"])


def test_saved_config_reads_back_the_same(tmp_path: Path):
    config = parse("--optim.lr=0.00001", "--model.hidden=[]", "--train.precision=no")
    save_config(config, tmp_path / "config.yaml")
    assert config_dict(parse("--config", str(tmp_path / "config.yaml"))) == config_dict(config)


def test_print_config_is_yaml_of_every_key():
    run = posters_command("train", "--print_config")
    assert run.returncode == 0, run.stderr
    shown = yaml.safe_load(run.stdout)
    for key in config_keys():
        section, name = key.split(".")
        assert name in shown[section]


def test_every_field_says_why():
    text = (ROOT / "toolkit" / "config.py").read_text()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            assert re.search(rf'^    {field.name}: .*\n    """.+', text, re.M), field.name


@pytest.mark.parametrize(
    ("name", "expected"), [("poster_resnet50.yaml", Config()), ("demo.yaml", demo_config())]
)
def test_shipped_configs_are_true(name: str, expected: Config):
    path = ROOT / "configs" / name
    assert config_dict(parse("--config", str(path))) == config_dict(expected)


def test_the_reference_says_of_every_key_what_its_field_says():
    text = (ROOT / "configs" / "poster_resnet50.yaml").read_text()
    told = [(name, why) for why, name in re.findall(r"^  # (.+)\n  (\w+):", text, re.M)]
    source = (ROOT / "toolkit" / "config.py").read_text()
    assert sorted(told) == sorted(re.findall(r'^    (\w+): .*\n    """(.+?)"""$', source, re.M))
    assert len(told) == len(config_keys())
