"""One source of options: dataclass, YAML and command line agree, and a wrong key names the nearest right one."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest
import yaml
from failing import fails
from toolkit_helpers import ROOT, config_keys, parse_train, posters_command

from shards.errors import UserError
from toolkit.cli.demo import demo_config
from toolkit.config.io import config_dict, save_config
from toolkit.config.schema import Config

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
        (["--decide.max_micro_f_loss", "1"], ["decide.max_micro_f_loss", "under 1"]),
        (["--train.epochs", "0"], ["train.epochs", "at least 1", "0"]),
        (["--data.crop_scale", "[0.9, 0.1]"], ["data.crop_scale"]),
        (["--data.crop_scale", "[0.9]"], ["data.crop_scale"]),
        (["--optim.lr", "-1"], ["optim.lr", "positive"]),
        (["--optim.lr", "nan"], ["optim.lr"]),
        (["--train.feature_cache", "s3://b/f"], ["train.feature_cache", "a local folder", "memory-mapped"]),
        (["--optim.momentum", "-3"], ["optim.momentum", "at least 0"]),
        (["--optim.momentum", "1"], ["optim.momentum", "under 1"]),
        (["--loss.name", "hinge"], ["loss.name", "bce, weighted, focal, asl, balanced", "hinge"]),
        (["--loss.name=asl", "--loss.options.gama_neg=3"], ["loss.options.gama_neg", "asl", "'gamma_neg'"]),
        (["--loss.name=asl", "--loss.options.gamma_neg=-1"], ["loss.options.gamma_neg must be 0 or more, not -1"]),
        (["--loss.name=asl", "--loss.options.gamma_neg=many"], ["loss.options", "float", "gamma_neg"]),
        (["--loss.name=asl", "--loss.options.clip=.inf"], ["loss.options.clip must be finite"]),
        (["--loss.options.clip=0"], ["loss.options.clip is not an option of bce; bce has no options"]),
        (["--loss.options={3: 1}"], ["loss.options.3 is not an option of bce"]),
        (["--train.trackers={1: {}}"], ["train.trackers", "tensorboard", "'1'"]),
        (["--train.trackers={tensorboard: {1: 2}}"], ["train.trackers.tensorboard.1"]),
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


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim:\n  lr: 0.5\n  lr: 0.1", "repeats optim.lr, in lines 2 and 3: remove one of them"),
        ("optim:\n  lr: 0.5\ntrain: {epochs: 1}\noptim:\n  name: sgd", "repeats optim, in lines 1 and 4"),
        ("optim: {lr: 0.5}\noptim.lr: 0.1", "repeats optim.lr, in lines 1 and 2"),
        ("shards: a\n'shards': b", "repeats shards, in lines 1 and 2"),
        ('{"optim": {"lr": 0.5, "lr": 0.1}}', "repeats optim.lr, in lines 1 and 1"),
        ("optim:\n  # lr: 1\ntrain: {epochs: 1}", "optim must contain keys, but contains nothing"),
        ("train: [1]", "train must contain keys, but contains list"),
        ("model: 5", "model must contain keys, but contains int"),
        ("config: other.yaml", "has the key config, which names another file"),
        ("optim: {lr: .inf}", "optim.lr must be finite, not inf"),
        ("optim: {weight_decay: .nan}", "optim.weight_decay"),
        ("data: {crop_ratio: [0.5, .inf]}", "data.crop_ratio must be finite"),
        (BOMB + "model: {hidden: *h}", "has over 10000 values after its aliases"),
        ("model: &m {hidden: [*m]}", "has over 10000 values after its aliases"),
        ("[" * 100_000, "more than 20 levels of nesting"),
        ("optim: &o {lr: 1\n", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("1: 2", "Key must be a string"),
        ("train: {seed: 5000000000}", "train.seed must be from 0 to 4294967295, not 5000000000"),
        ("model: {hidden: [70000]}", "model.hidden must be at most 64 widths from 1 to 65536"),
        (f"model: {{hidden: {[1] * 70}}}", "model.hidden must be at most 64 widths"),
        ("data: {image_size: 1000000}", "data.image_size must be 0 (the backbone's size) or from 16 to 4096 pixels"),
        ("data: {image_size: 4096, crop_pct: 0.2}", "data.crop_pct 0.2 resizes images to over"),
        ("#" * 2**21, "has over 1048576 bytes"),
    ],
)
def test_files_that_cannot_be_meant_so(tmp_path: Path, text: str, words: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    started = time.monotonic()
    message = error("--config", str(path))
    assert words in message and len(message) < 500, message
    assert time.monotonic() - started < 20


def test_however_the_file_is_named(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1, lr: 2}")
    for option in (["--config", str(path)], [f"--config={path}"]):
        assert "repeats optim.lr" in error(*option)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--train.epoch", "3"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (["--train.epoch=3"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (["--optim.weight", "3"], "unknown key 'optim.weight'; did you mean 'optim.weight_decay'?"),
        (["--conf", "best"], "unknown key 'conf'; did you mean 'config'?"),
        (["--res"], "unknown key 'res'; did you mean 'resume'?"),
    ],
)
def test_the_beginning_of_a_key_is_refused(words: list[str], meant: str):
    assert error(*words) == meant


@pytest.mark.parametrize("names", ["mlflow,wandb", "[mlflow, wandb]", "[wandb,mlflow]", "{mlflow: {}, wandb: {}}"])
def test_a_list_of_trackers_takes_options(names: str):
    for words in (["--train.trackers", names], [f"--train.trackers={names}"]):
        found = parse(*words, "--train.trackers.mlflow.tracking_uri", "x").train.trackers
        assert found == {"mlflow": {"tracking_uri": "x"}, "wandb": {}}


def test_options_of_a_tracker_are_a_mapping(tmp_path: Path):
    line = "train.trackers.mlflow needs a mapping of options; write --train.trackers '{mlflow: {NAME: VALUE}}'"
    assert error("--train.trackers.mlflow", "x") == line
    (tmp_path / "c.yaml").write_text("train: {trackers: [mlflow]}")
    assert error("--config", str(tmp_path / "c.yaml"), "--train.trackers.mlflow.run_name=x") == (
        "train.trackers.mlflow.run_name needs a mapping of options; "
        "write --train.trackers '{mlflow: {run_name: VALUE}}'"
    )


def test_a_value_without_its_option(drawn_set: Path, tmp_path: Path):
    assert error(str(drawn_set)) == f"unknown argument {drawn_set}: write --shards {drawn_set}"
    (tmp_path / "c.yaml").touch()
    assert error(str(tmp_path / "c.yaml")).endswith(f": write --config {tmp_path / 'c.yaml'}")
    assert error("RUN") == "unknown argument RUN: each value follows its option, as in --out OUT --shards SHARDS"


def test_a_section_of_its_own_may_not_repeat_a_key_either(tmp_path: Path):
    path = tmp_path / "optim.yaml"
    path.write_text("lr: 0.5\nname: sgd\n")
    assert parse("--optim", str(path)).optim.lr == 0.5
    path.write_text("lr: 0.5\nlr: 0.1\n")
    assert "repeats lr, in lines 1 and 2" in error("--optim", str(path))
    assert "--optim repeats lr" in error("--optim", '{"lr": 1, "lr": 2}')
    assert parse("--optim.lr=1", "--optim.lr=2").optim.lr == 2  # as everywhere on command lines


def test_anchors_and_merge_keys_are_yaml(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(
        "optim: {<<: &o {lr: 0.5, name: sgd}, lr: 0.25}\nloss: {name: asl, clip: &c 0.1, gamma_pos: *c}\n"
    )
    config = parse("--config", str(tmp_path / "c.yaml"))
    assert (config.optim.lr, config.optim.name, config.loss.options["clip"]) == (0.25, "sgd", 0.1)


def test_options_of_a_loss_and_the_flat_keys_of_earlier_versions(tmp_path: Path):
    asl = {"gamma_pos": 0.0, "gamma_neg": 3.0, "clip": 0.05}
    assert parse("--loss.name=asl", "--loss.options.gamma_neg=3").loss.options == asl
    assert parse("--loss.name=asl", "--loss.gamma_neg=3").loss.options == asl
    (tmp_path / "c.yaml").write_text("loss: {name: asl, gamma_neg: 3, focal_gamma: 5}\n")
    assert parse("--config", str(tmp_path / "c.yaml")).loss.options == asl
    (tmp_path / "loss.yaml").write_text("{name: asl, options: {gamma_neg: 3}}\n")
    assert parse("--loss", str(tmp_path / "loss.yaml")).loss.options == asl
    both = parse("--config", str(tmp_path / "c.yaml"), "--loss.options.gamma_neg=2")
    assert both.loss.options == {**asl, "gamma_neg": 2.0}
    assert parse("--loss.focal_gamma=3").loss.options == {}  # of another loss: without effect, as before


@pytest.mark.parametrize("key", config_keys())
def test_a_key_without_a_value(key: str, tmp_path: Path):
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {name}:\n")
    if key in ("model.weights", "train.feature_cache", "augment.name", "metric.name", "model.adapter"):
        assert parse("--config", str(tmp_path / "c.yaml")) == parse()
    else:
        with fails("option-value", key):
            parse("--config", str(tmp_path / "c.yaml"))


def test_keys_that_became_constants(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    usual = (
        "train: {channels_last: true, max_skipped: 10}\naugment: {mix_prob: 1, erase_area: [0.02, 0.33], mixup: 0.2}\n"
    )
    (tmp_path / "c.yaml").write_text(usual)
    assert parse("--config", str(tmp_path / "c.yaml")) == parse("--augment.mixup=0.2")
    assert parse("--train", "{channels_last: true, epochs: 2}") == parse("--train.epochs=2")
    assert caplog.messages == []
    assert parse("--train.channels_last=false") == parse()
    assert parse("--config", str(tmp_path / "c.yaml"), "--augment.mix_prob=0") == parse()
    assert [message.split()[0] for message in caplog.messages] == ["train.channels_last", "augment.mix_prob"]


@pytest.mark.parametrize(
    "option", ["train.max_skipped=99", "augment.mix_prob=0.5", "augment.erase_area=[0.1, 0.2]", "train.max_skipped=few"]
)
def test_another_value_of_what_became_a_constant_is_refused(option: str):
    key, value = option.split("=")
    with fails("option-value", key, value):
        parse(f"--{option}")


def test_folders_are_needed():
    with pytest.raises(UserError, match="--shards is missing"):
        parse_train(["--out", "R"])
    with pytest.raises(UserError, match="--out is missing"):
        parse_train(["--shards", "S"])


def test_saved_config_reads_back_the_same(tmp_path: Path):
    config = parse("--optim.lr=0.00001", "--model.hidden=[]", "--train.precision=no")
    save_config(config, tmp_path / "config.yaml")
    assert config_dict(parse("--config", str(tmp_path / "config.yaml"))) == config_dict(config)


def test_print_config_is_yaml_of_every_key(tmp_path: Path):
    run = posters_command("train", "--print_config")
    assert run.returncode == 0, run.stderr
    shown = yaml.safe_load(run.stdout)
    for section, values in config_dict(Config()).items():
        assert values.keys() == shown[section].keys()
    (tmp_path / "c.yaml").write_text(run.stdout)
    read = parse_train(["--config", str(tmp_path / "c.yaml"), *RUN]).config
    assert config_dict(read) == config_dict(Config())


def _field_sources() -> str:
    """Text of the modules that define the configuration's sections."""
    return "".join(
        (ROOT / "toolkit" / "config" / f"{name}.py").read_text() for name in ("schema", "augmentation_registry")
    )


def test_every_field_says_why():
    text = _field_sources()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            assert re.search(rf'^    {field.name}: .*\n    """.+', text, re.M), field.name


@pytest.mark.parametrize(("name", "expected"), [("poster_resnet50.yaml", Config()), ("demo.yaml", demo_config())])
def test_shipped_configs_are_true(name: str, expected: Config):
    path = ROOT / "configs" / name
    assert config_dict(parse("--config", str(path))) == config_dict(expected)


def test_the_reference_says_of_every_key_what_its_field_says():
    text = (ROOT / "configs" / "poster_resnet50.yaml").read_text()
    told = [(name, why) for why, name in re.findall(r"^  # (.+)\n  (\w+):", text, re.M)]
    fields = re.findall(r'^    (\w+): .*\n    """(.+?)"""$', _field_sources(), re.M)
    names = {key.rpartition(".")[2] for key in config_keys()}
    assert sorted(told) == sorted(field for field in fields if field[0] in names)
    assert len(told) == len(config_keys())
