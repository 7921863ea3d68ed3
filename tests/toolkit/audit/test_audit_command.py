"""``posters audit`` as a command: its options, its files, its page; what it says of wrong ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from failing import fails
from html_tools import HOSTILE, assert_text_only
from PIL import Image
from sklearn.metrics import average_precision_score
from toolkit_helpers import make_model_folder

from shards.inputs.images import ANY, decode

pytest.importorskip("cv2")

from audit_tools import GENRES, Folders, Reader, audit, settings_of, write_anywhere, write_titles

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.tables.metadata import GenreOptions
from shards.text.registry import make_fill
from shards.visuals.links import subject_of, write_page
from toolkit.audit.options import AuditOptions
from toolkit.audit.results import page
from toolkit.audit.run import fill_maker
from toolkit.audit.selection import read_posters, read_targets
from toolkit.cli.commands import read
from toolkit.cli.run_audit import run_audit
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_titles(tmp_path_factory.mktemp("titles"))


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_anywhere(tmp_path_factory.mktemp("anywhere"))


def test_ids_and_genres_are_escaped(titles: Folders):
    _, report, examples = audit(Reader(), titles, limit=1)
    report["genres"][0]["genre"] = report["command"]["images"] = HOSTILE
    report["notes"].append(HOSTILE)
    changes = [{**change, "genre": HOSTILE} for change in examples[0].facts["changes"]]
    facts = {**examples[0].facts, "id": HOSTILE, "changes": changes}
    html = page(report, [replace(examples[0], facts=facts)])
    assert_text_only(html, HOSTILE, 4 + len(changes))
    assert "http:" not in html and "https:" not in html and html.count("data:image/jpeg;base64,") == 3


def test_an_unknown_fill_and_bad_options(titles: Folders, tmp_path: Path):
    assert fill_maker(None)("model") is make_fill("surround")
    with pytest.raises(UserError, match="--fill"):
        fill_maker(None)("crayon")
    for name, value in (("batch_size", 0), ("threads", -1), ("controls", 0), ("limit", 0)):
        with fails("option-value", f"--{name.replace('_', '-')}"):
            settings_of(titles, **{name: value})
    for folders in ((tmp_path / "no", titles[1]), (titles[0], tmp_path / "no")):
        with fails("path-missing", tmp_path / "no"):
            settings_of(folders)
    with pytest.raises(UserError):
        read_posters(tmp_path)


def test_controls_of_a_network_are_painted_by_it_only_if_it_is_given(monkeypatch):
    made: list[tuple[str, Path | None]] = []

    def make(name: str, model: Path | None = None) -> Callable[..., np.ndarray]:
        made.append((name, model))
        return lambda image, mask: image

    monkeypatch.setattr("toolkit.audit.run.make_fill", make)
    fill_maker(None)("model")
    with_network = fill_maker(Path("net.onnx"))
    with_network("model"), with_network("telea"), with_network("telea")
    assert made == [("surround", None), ("model", Path("net.onnx")), ("telea", None)]


def arguments(*words: object) -> AuditOptions:
    found: AuditOptions = read(["audit", *map(str, words)])[1]
    return found


def test_the_command_with_labels(anywhere: Folders, tmp_path: Path, capsys, caplog):
    model = make_model_folder(tmp_path / "model", LabelSet(GENRES), HeadSpec("linear", (), 0.0))
    lists = [("Comedy",), ("Drama", "Horror"), ("Drama", "Musical")]
    csv = tmp_path / "meta.csv"
    lines = [f"p{number:02d},{'|'.join(lists[number % 3])}" for number in range(32)]
    csv.write_text("\n".join(["id,genre", *lines, "p40,Musical", "nowhere,Drama"]))
    out = anywhere[0].parent / "audit"
    cleaned = anywhere[0].parent / "cleaned-sheet" / "contact_sheet.html"
    write_page(cleaned, f'<meta name="page-of" content="Cleaning {subject_of(anywhere[1])}"><!--links--><!--/links-->')
    args = arguments(
        "--model", model, "--images", anywhere[0], "--cleaned", anywhere[1], "--out", out, "--controls", 2,
        "--metadata", csv, "--id-column", "id", "--genre-column", "genre", "--workers", 1,
    )  # fmt: skip
    assert run_audit(args) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "audit.json").read_text())
    assert report["sentence"][:40] in shown and "mAP" in shown and "Comedy" in shown
    assert "'Musical'" in caplog.text
    assert report["counts"]["left_out"] == {"not cleaned": 1} and report["counts"]["not_in_metadata"] == 27
    assert len(report["command"]["model_fingerprint"]) == 64
    assert report["command"]["labels_fingerprint"] == LabelSet(GENRES).fingerprint

    # the metrics are scikit-learn's on the model's own logits
    rows = pd.read_csv(out / "audit.csv", keep_default_na=False)
    assert len(rows) == 33
    ids = [i for i, problem in zip(rows["id"], rows["not_compared"], strict=True) if not problem and i != "p40"]
    folder = load_model_folder(model)
    posters = (decode((anywhere[0] / f"{i}.png").read_bytes(), ANY) for i in ids)
    pixels = np.stack([folder.preprocessing.square(poster) for poster in posters])
    with torch.inference_mode():
        scores = sigmoid(folder.model(folder.preprocessing.normalize(torch.from_numpy(pixels))).numpy())
    targets = np.array([[g in lists[int(i[1:]) % 3] for g in GENRES] for i in ids])
    assert report["metrics"]["posters"] == len(ids)
    assert report["metrics"]["raw"]["mAP"] == pytest.approx(average_precision_score(targets, scores), abs=1e-6)

    html = (out / "audit.html").read_text()
    assert 'href="../cleaned-sheet/contact_sheet.html">Cleaning' in html
    assert 'href="../audit/audit.html">Audit' in cleaned.read_text()
    assert report["sentence"].split(":")[0] in html and html.count("<script") == 1
    with Image.open(out / "audit.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000


def test_a_csv_of_other_genres_is_refused(tmp_path: Path):
    csv = tmp_path / "meta.csv"
    csv.write_text("id,genre\na,Opera\n")
    with fails("table-column", csv, "'genre'", "--genre-column"):
        read_targets(csv, LabelSet(GENRES), GenreOptions(id_column="id", genre_column="genre"))


def test_rows_are_read_as_the_models_labels_and_bad_ones_are_named(tmp_path: Path, caplog):
    csv = tmp_path / "meta.csv"
    csv.write_text("id,genre\na,comedy|drama\u200b\nb,COMEDY\nc,['Drama\n")
    labels = LabelSet(("Comedy", "Drama"))
    targets = read_targets(csv, labels, GenreOptions())
    assert {i: row.tolist() for i, row in targets.items()} == {"a": [True, True], "b": [True, False]}
    assert "1 rows of" in caplog.text and "are not audited: 1 unparsable genres; for example id 'c'" in caplog.text


def test_without_opencv_one_line(titles: Folders, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    args = arguments("--model", tmp_path, "--images", titles[0], "--cleaned", titles[1])
    with pytest.raises(UserError, match="`posters audit` needs cv2"):
        run_audit(args)
