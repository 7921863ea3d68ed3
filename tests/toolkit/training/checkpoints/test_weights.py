"""--model.weights FOLDER: a model goes on with new genres. Genres with the same name keep their rows of the head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from failing import fails
from toolkit_helpers import TINY, make_model_folder, parse_train, posters_command

from shards.dataset.labels import LabelSet
from toolkit.config.schema import Config
from toolkit.distributed.agreement import config_facts
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec, head_prefixes, set_prior
from toolkit.models.last_layer import last_linears
from toolkit.training.checkpoints.weights import load_folder, load_weights

#: Of the folder, and of the shard set.
OLD = LabelSet(("Comedy", "Drama", "Film\u00a0Noir", "War"))
NEW = LabelSet(("Anime", "Drama", "Comedy", "Film Noir", "Noir"))
#: Row of NEW → row of OLD.
SAME = {1: 1, 2: 0, 3: 2}
SAID = "3 genres carried over, 2 new (Anime, Noir), 1 left out (War)"
HEADS = {
    "linear": HeadSpec("linear"),
    "mlp": HeadSpec("mlp", (8, 6)),
    "levels": HeadSpec("levels"),
    "ensemble": HeadSpec("ensemble", (8,), members=3),
}


def options(head: HeadSpec, *more: str, name: str = "test_resnet") -> Config:
    """The configuration of a training with this head."""
    words = [f"--model.head={head.kind}", f"--model.hidden=[{','.join(map(str, head.hidden))}]", *more]
    words += [f"--model.members={head.members}", f"--model.name={name}"]
    return parse_train(["--shards", "S", "--out", "R", *TINY, *words]).config


def new_model(head: HeadSpec, labels: LabelSet = NEW, name: str = "test_resnet", size: int = 32) -> Any:
    """An untrained model with other weights than those of `make_model_folder`."""
    torch.manual_seed(1)
    return build_model(name, len(labels), head, size)


def old_folder(
    folder: Path, labels: LabelSet, head: HeadSpec, name: str = "test_resnet", size: int = 32, fit: str = "crop"
) -> Path:
    """A model folder of an untrained model, with the normalisation of its architecture."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    make_model_folder(folder, labels, head, size, name, fit=fit)
    edit_config(folder, mean=cfg.mean, std=cfg.std)
    return folder


def edit_config(folder: Path, trained_as: str | None = None, **normal: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["pretrained_cfg"] |= normal
    if trained_as is not None:
        raw["poster_toolkit"]["training_config"] = {"model": {"name": trained_as}}
    (folder / "config.json").write_text(json.dumps(raw))


def per_genre(model: Any) -> list[torch.Tensor]:
    """Weights and biases of the last layers, which have one row per genre."""
    return [tensor for layer in last_linears(model, head_prefixes(model)) for tensor in layer.parameters()]


def rows_of(model: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in per_genre(model)]


@pytest.mark.parametrize("kind", HEADS)
def test_rows_are_carried_over_to_the_bit(kind: str, tmp_path: Path):
    head = HEADS[kind]
    source = old_folder(tmp_path / "RUN" / "model", OLD, head)
    model = new_model(head)
    set_prior(model, torch.linspace(0.1, 0.5, len(NEW)).numpy())
    drawn = rows_of(model)
    said, learnt = load_folder(model, options(head), tmp_path / "RUN", NEW)
    assert said == f"loaded the backbone of {source}; head: {SAID}" and learnt
    theirs = load_model_folder(source).model
    found, wanted = rows_of(model), rows_of(theirs)
    assert len(found) == len(wanted) == len(drawn) == 2 * head.members
    for tensor, their, own in zip(found, wanted, drawn, strict=True):
        for row in range(len(NEW)):
            assert torch.equal(tensor[row], their[SAME[row]] if row in SAME else own[row])
    own_rows = set(map(id, per_genre(model)))
    others = [name for name, tensor in model.named_parameters() if id(tensor) not in own_rows]
    state, their_state = model.state_dict(), theirs.state_dict()
    assert others and all(torch.equal(state[name], their_state[name]) for name in others)


@pytest.mark.parametrize("kind", HEADS)
def test_a_logit_of_a_genre_stays_the_same(kind: str, tmp_path: Path):
    """In another order, with the genres of the folder: each image has the same logits by name."""
    head, labels = HEADS[kind], LabelSet(OLD.genres[::-1])
    source = old_folder(tmp_path / "m", OLD, head)
    model = new_model(head, labels).eval()
    said, _ = load_folder(model, options(head), source, labels)
    assert said.endswith("head: 4 genres carried over")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), load_model_folder(source).model(images).flip(1))
    model = new_model(head, OLD).eval()
    assert load_folder(model, options(head), source, OLD)[0].endswith("head: all 4 genres carried over")
    assert torch.equal(model(images), load_model_folder(source).model(images))


def test_no_common_genre_is_a_new_head(tmp_path: Path):
    """A linear head is then untrained. The hidden layers of an mlp are trained."""
    labels = LabelSet(("x", "y"))
    for head, learnt in ((HEADS["linear"], False), (HEADS["mlp"], True)):
        source = old_folder(tmp_path / head.kind, OLD, head)
        said = load_folder(new_model(head, labels), options(head), source, labels)
        assert said[0].endswith("0 genres carried over, 2 new (x, y), 4 left out (Comedy, Drama, Film\u00a0Noir, War)")
        assert said[1] == learnt


def test_a_head_without_rows_per_genre_is_new(tmp_path: Path):
    """timm's dpn48b has a convolution as its classifier."""
    head, name = HeadSpec("linear", dropout=0.0), "dpn48b"
    source = old_folder(tmp_path / "m", OLD, head, name=name)
    model = new_model(head, NEW, name)
    drawn = model.classifier.weight.detach().clone()
    said, learnt = load_folder(model, options(head, name=name), source, NEW)
    assert said.endswith("head: new, because it has no layer with one row per genre") and not learnt
    assert torch.equal(model.classifier.weight, drawn)
    load_folder(model := new_model(head, OLD, name), options(head, name=name), source, OLD)
    theirs: Any = load_model_folder(source).model
    assert torch.equal(model.classifier.weight, theirs.classifier.weight)


@pytest.mark.parametrize(
    ("head", "name", "remedy"),
    [
        (HEADS["linear"], "test_resnet", "--model.head ensemble --model.hidden [8] --model.members 3. To load only"),
        (HeadSpec("ensemble", (8,), members=2), "test_resnet", "set --model.members 3. To load only its backbone"),
        (HeadSpec("ensemble", (9,), members=3), "test_resnet", "set --model.hidden [8]. To"),
        (HEADS["ensemble"], "test_byobnet", "set --model.name test_resnet"),
    ],
)
def test_another_network_is_refused_with_the_options(head: HeadSpec, name: str, remedy: str, tmp_path: Path):
    source = old_folder(tmp_path / "m", OLD, HEADS["ensemble"])
    with fails("model-unfit", source, remedy):
        load_folder(new_model(head, NEW, name), options(head, name=name), source, NEW)


def test_the_file_of_a_folder_gives_the_backbone_and_names_the_folder(tmp_path: Path):
    source = old_folder(tmp_path / "m", OLD, HEADS["mlp"])
    said, _ = load_weights(new_model(HEADS["linear"]), source / "model.safetensors", NEW)
    assert said.endswith(f"To keep the genres that both have, set --model.weights {source}")


def test_another_normalisation_is_refused(tmp_path: Path):
    source = old_folder(tmp_path / "m", OLD, HEADS["linear"])
    edit_config(source, mean=[0.485, 0.456, 0.406])
    with fails("model-unfit", source, "(0.485, 0.456, 0.406)", "(0.5, 0.5, 0.5)", "train from other weights"):
        load_folder(new_model(HEADS["linear"]), options(HEADS["linear"]), source, NEW)
    tagged = "test_resnet.r160_in1k"
    for name, hint in ((tagged, f"set --model.name {tagged}"), ("test_resnet.\x1b[2J", "train from other weights")):
        edit_config(source, trained_as=name)
        with fails("model-unfit", hint):
            load_folder(new_model(HEADS["linear"]), options(HEADS["linear"]), source, NEW)


def test_another_size_is_said(tmp_path: Path):
    source = old_folder(tmp_path / "m", OLD, HEADS["linear"], size=64, fit="stretch")
    said, _ = load_folder(new_model(HEADS["linear"]), options(HEADS["linear"]), source, NEW)
    assert "which was trained with data.image_size 64, data.fit stretch; head: " in said
    vit = old_folder(tmp_path / "v", OLD, HEADS["linear"], size=64, name="test_vit")
    model = new_model(HEADS["linear"], NEW, "test_vit")
    said, _ = load_folder(model, options(HEADS["linear"], name="test_vit"), vit, NEW)
    assert "position embeddings resampled to this image size" in said


def test_a_folder_without_a_model_or_with_a_damaged_one_is_one_line(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with fails("model-missing", tmp_path / "empty", "config.json"):
        load_folder(new_model(HEADS["linear"]), options(HEADS["linear"]), tmp_path / "empty", NEW)
    source = old_folder(tmp_path / "m", OLD, HEADS["linear"])
    with (source / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x55")
    with fails("model-damaged", source):
        load_folder(new_model(HEADS["linear"]), options(HEADS["linear"]), source, NEW)


def test_processes_compare_the_folders_by_content(tmp_path: Path):
    one = old_folder(tmp_path / "one" / "model", OLD, HEADS["linear"])
    two = Path(shutil.copytree(one, tmp_path / "two" / "model"))
    other = old_folder(tmp_path / "other", NEW, HEADS["linear"])
    facts = [
        config_facts(options(HEADS["linear"], f"--model.weights={folder}"))["model.weights"][0]
        for folder in (one, one.parent, two, other)
    ]
    assert facts[0] == facts[1] == facts[2] != facts[3] and "no such file" not in facts


@pytest.mark.parametrize("kind", HEADS)
def test_a_training_goes_on_with_new_genres(kind: str, shard_set: Path, labels: LabelSet, tmp_path: Path):
    """Of pixels, or of cached features that are standardised."""
    head, run = HEADS[kind], tmp_path / "run"
    old = LabelSet((*labels.genres[2:], "Telenovela"))
    old_folder(tmp_path / "old" / "model", old, head)
    words = [f"--model.head={kind}", f"--model.hidden=[{','.join(map(str, head.hidden))}]", "--train.epochs=1"]
    words += [f"--model.members={head.members}", f"--model.weights={tmp_path / 'old'}"]
    if kind in ("levels", "ensemble"):
        words += ["--model.freeze=[backbone]", "--train.feature_views=1", "--train.standardize=true"]
    done = posters_command("train", "--shards", shard_set, "--out", run, *TINY, *words)
    new, carried = ", ".join(labels.genres[:2]), len(labels) - 2
    assert done.returncode == 0, done.stderr
    assert f"head: {carried} genres carried over, 2 new ({new}), 1 left out (Telenovela)" in done.stderr
    assert load_model_folder(run / "model").labels == labels
