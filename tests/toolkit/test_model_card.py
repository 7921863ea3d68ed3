"""What the model card says of use: true for the head at hand, and for models that came from elsewhere."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from toolkit_helpers import make_model_folder

from shards.labels import LabelSet
from toolkit.model_card import render_card
from toolkit.models import HeadSpec


@pytest.mark.parametrize("kind", ["linear", "mlp", "levels", "ensemble"])
def test_how_others_load_it(tmp_path: Path, kind: str):
    folder = make_model_folder(tmp_path / "m", LabelSet(("a", "b")), HeadSpec(kind, (8,), 0.0, 2))
    use = (folder / "README.md").read_text().split("## Use\n")[1]
    code = use.split("```python\n")[1].split("```")[0]
    assert ast.parse(code) and 'toolkit.load_model(".")' in code and "model.predict([" in code
    assert ("loads in plain timm" in use) == (kind == "linear")
    assert ("need poster-toolkit" in use) == (kind != "linear")


def test_who_made_it(model_folder: Path):
    config = json.loads((model_folder / "config.json").read_text())
    labels = json.loads((model_folder / "labels.json").read_text())
    assert "trained with poster-toolkit" in render_card(config, labels, {})
    config["poster_toolkit"]["imported_sha256"] = "0" * 64
    card = render_card(config, labels, {})
    assert "imported by poster-toolkit" in card and "trained with" not in card
