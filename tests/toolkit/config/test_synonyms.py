"""Names of keys in other programs lead to ours. They are suggested and never accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing import fails
from toolkit_helpers import config_keys, parse_train

from shards.errors import Code
from toolkit.config.synonyms import MAIN_KEYS, REMARKS, SYNONYMS, meant

RUN = ["--shards", "S", "--out", "O"]
OPTIONS = {"shards", "out", "config", "resume", "find_lr"}


def test_every_synonym_leads_to_a_key_and_is_none_itself():
    keys = set(config_keys()) | OPTIONS
    assert set(SYNONYMS.values()) <= keys and set(MAIN_KEYS.values()) <= keys
    assert not (set(SYNONYMS) | set(REMARKS)) & keys
    assert not set(SYNONYMS) & set(REMARKS)


@pytest.mark.parametrize(("name", "key"), SYNONYMS.items())
def test_a_synonym_in_any_spelling(name: str, key: str):
    hint = f"; did you mean {key.replace('find_lr', 'find-lr')!r}?"
    assert all(meant(text, []) == hint for text in (name, name.replace("_", "-"), name.upper(), f"optim.{name}"))


def test_a_synonym_in_a_file(tmp_path: Path):
    for text, key in (
        ("learning_rate: 1", "optim.lr"),
        ("optim: {l2: 1}", "optim.weight_decay"),
        ("opt: 1", "optim.name"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with fails("option-unknown", f"did you mean {key!r}?"):
            parse_train([*RUN, "--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        ("option-unknown", ["--optim.learning_rate", "1"], "did you mean 'optim.lr'?"),
        ("option-unknown", ["--optim.epochs", "1"], "did you mean 'train.epochs'?"),
        ("option-unknown", ["--batch-size", "1"], "did you mean 'train.batch_size'?"),
        ("option-unknown", ["--num-classes=1"], "the genres are those of the shard set"),
        ("option-unknown", ["--devices", "1"], "accelerate launch"),
        ("option-unknown", ["--opt", "adamw"], "did you mean 'optim.name'?"),
        ("option-value", ["--model", "resnet18"], "did you mean --model.name resnet18?"),
        ("option-value", ["--data=SHARDS"], "did you mean --shards SHARDS?"),
    ],
)
def test_what_people_type(code: Code, words: list[str], hint: str):
    with fails(code, hint):
        parse_train([*RUN, *words])
