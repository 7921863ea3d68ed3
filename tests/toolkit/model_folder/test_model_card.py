"""What the model card says of use: true for the head at hand, and for models that came from elsewhere."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt  # rich's
from toolkit_helpers import make_model_folder

from shards.dataset.labels import LabelSet
from shards.errors import printable_line
from toolkit.config.values import HeadKind
from toolkit.model_folder.card import plain, render_card, write_card
from toolkit.models.heads import HeadSpec


@pytest.mark.parametrize("kind", ["linear", "mlp", "levels", "ensemble"])
def test_how_others_load_it(tmp_path: Path, kind: HeadKind):
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


EVIL = (
    "a|b\n---\n# <script>x</script> ![p](http://h/x.png) `c` **d** <img src=x> &lt; $e$ [f](g) _h_ ~~i~~ "
    "\\ | -- \x1b[2J\u202e http://h <http://h>"
)


def parsed(card: str) -> tuple[list[str], str]:
    """(kinds of all tokens in order, all text) of a card without its front matter."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(card.split("\n---\n", 1)[1])
    inner = [child for token in tokens for child in token.children or ()]
    return [token.type for token in [*tokens, *inner]], "".join(token.content for token in inner)


def test_names_from_outside_are_no_markdown(model_folder: Path):
    config = json.loads((model_folder / "config.json").read_text())
    labels = json.loads((model_folder / "labels.json").read_text())

    def card_with(name: str) -> str:
        labels["genres"][0] = labels["threshold_source"] = config["architecture"] = name
        config["poster_toolkit"]["shard_set"] = name
        row = {"label": name, "metrics": {"micro_f1": 0.5}}
        values = {"num_samples": 1, "thresholds": [row], "baselines": [row], "ranking": {}, "loss": None}
        return render_card(config, labels, {name: values | {"shard_set": f"x{name}"}})

    plain_kinds, _ = parsed(card_with("name"))
    kinds, text = parsed(card_with(EVIL))
    assert [k for k in kinds if k != "text_special"] == plain_kinds
    assert text.count(printable_line(EVIL)) == 9
    assert card_with(EVIL).splitlines()[:5] == card_with("name").splitlines()[:5]
    assert not set(card_with(EVIL)) & set("<>\x1b\u202e") and "http://" not in card_with(EVIL)
    for name in ("Sci-Fi & Fantasy", "resnet18_x", "Children's", "日本"):
        assert plain(name) == name


def test_metrics_that_cannot_be_shown_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = make_model_folder(tmp_path / "m", LabelSet(("a", "b")), HeadSpec("linear", (), 0.0))
    for text in ("[", "[]", "{}", '{"num_samples": "1"}', "[" * 100_000):
        (folder / "metrics-test.json").write_text(text)
        caplog.clear()
        write_card(folder)
        assert "metrics left out" in caplog.text and "metrics-test.json" in caplog.text
        assert "Metrics on test" not in (folder / "README.md").read_text()
