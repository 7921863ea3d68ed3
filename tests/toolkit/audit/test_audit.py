"""``posters audit``: models that read, that do not, and that see nothing; what is compared and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("cv2")

from audit_tools import (
    PREPROCESSING,
    SHAPE,
    Blind,
    Folders,
    Mean,
    Reader,
    audit,
    box,
    folder_of,
    settings_of,
    titled,
    write_anywhere,
    write_report_file,
    write_set,
    write_titles,
)
from failing import fails

from shards.text.registry import make_fill
from shards.text.report import NAME as REPORT
from toolkit.audit.images import make_pictures, reencode
from toolkit.audit.results import build_report, page
from toolkit.audit.run import audit_posters, fill_maker
from toolkit.audit.selection import choose_posters, read_posters
from toolkit.distributed.collectives import make_accelerator
from toolkit.metrics.helpers import sigmoid


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_titles(tmp_path_factory.mktemp("titles"))


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_anywhere(tmp_path_factory.mktemp("anywhere"))


def test_a_model_that_reads(titles: Folders):
    _, report, examples = audit(Reader(), titles)
    ratio, effects = report["ratio"], report["effects"]
    assert ratio["value"] > 10 and ratio["low"] > 5 and ratio["posters"] == 12
    assert report["sentence"].startswith("No difference seen") and "12 posters are too few" in report["sentence"]
    assert report["overview"]["advice"]["words"].startswith("Audit at least 30 posters")
    assert [tile["value"] for tile in report["overview"]["tiles"]] == [None, 1.0, 0.0, 0.0]
    assert effects["text"]["posters_with_a_flip"] == 1.0 and effects["control"]["posters_with_a_flip"] == 0.0
    assert effects["reencoding"]["probability"] <= effects["control"]["probability"] * 1.5
    adds = {record["genre"]: record["title_adds"] for record in report["genres"]}
    assert adds["Comedy"] > 0.3 and adds["Drama"] < -0.3 and adds["Horror"] == 0.0
    assert report["areas"]["control"] == pytest.approx(1.0) and len(examples) == 12
    assert any("Re-encoding alone" in note for note in report["notes"])


def test_calibration_comes_before_every_figure(titles: Folders):
    folder, settings = folder_of(Reader()), settings_of(titles, controls=1)
    chosen = choose_posters(read_posters(titles[1]), settings, None)
    raw = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    scale, bias = np.array([2.0, 1.0, 0.5]), np.array([0.5, 0.0, -0.5])
    folder.decisions = replace(folder.decisions, scale=scale, bias=bias, calibration="platt")
    ours = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    np.testing.assert_allclose(ours.logits, scale * raw.logits + bias, rtol=1e-6)
    report, _ = build_report(folder, chosen, ours, settings, fill_maker(None))
    moved = np.abs(sigmoid(ours.logits[:, 2]) - sigmoid(ours.logits[:, 0])).mean()
    assert report["effects"]["text"]["probability"] == pytest.approx(moved)


def test_a_model_that_only_sees_the_whole(anywhere: Folders):
    _, report, _ = audit(Mean(), anywhere, controls=4)
    ratio = report["ratio"]
    assert ratio["low"] < 1 < ratio["high"] and 0.6 < ratio["value"] < 1.6
    assert report["sentence"].startswith("No difference seen") and ratio["posters"] == 60


def test_a_blind_model(titles: Folders):
    _, report, _ = audit(Blind(), titles)
    assert report["sentence"].startswith("Titles do not move predictions")
    assert report["ratio"]["value"] is None and report["effects"]["text"]["probability"] == 0.0
    assert "Titles do not move predictions" in page(report, [])
    json.dumps(report, allow_nan=False)


def test_the_same_at_any_batch_size_and_workers(anywhere: Folders):
    one, report, _ = audit(Mean(), anywhere, limit=10, batch_size=1)
    two, other, _ = audit(Mean(), anywhere, limit=10, batch_size=64)
    assert [p.id for p in one.posters] == [p.id for p in two.posters] and len(one.posters) == 10
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)
    assert one.areas == two.areas and report["sentence"] == other["sentence"]
    settings = settings_of(anywhere, limit=10, controls=2, threads=3)
    folder = folder_of(Mean())
    chosen = choose_posters(read_posters(anywhere[1]), settings)
    three = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    assert (three.logits == two.logits).all()
    elsewhere, _, _ = audit(Mean(), anywhere, limit=10, seed=1)
    assert [p.id for p in elsewhere.posters] != [p.id for p in one.posters]


def test_both_pictures_went_through_the_same_encoder(titles: Folders):
    poster = read_posters(titles[1])[0]
    pictures = make_pictures(poster, settings_of(titles, controls=2), PREPROCESSING, make_fill("surround"))
    raw, again, cleaned, *controls = (np.asarray(image) for image in pictures.images)
    expected = reencode(make_fill("surround")(raw, pictures.text))
    assert (cleaned == np.asarray(expected)).all()
    assert (again == np.asarray(reencode(raw))).all()
    for control, drawn in zip(controls, pictures.controls, strict=True):
        assert (control == np.asarray(reencode(make_fill("surround")(raw, drawn.mask)))).all()
        assert drawn.mask.sum() == pictures.text.sum() and not (drawn.mask & pictures.text).any()


def test_a_model_of_whole_posters_is_audited_on_whole_posters(titles: Folders):
    poster, settings = read_posters(titles[1])[0], settings_of(titles, controls=1)
    stretched = replace(PREPROCESSING, fit="stretch")
    pictures = make_pictures(poster, settings, stretched, make_fill("surround"))
    assert pictures.view == (0, 0, *pictures.images[0].size)
    assert pictures.areas().text_in_view == 1.0
    np.testing.assert_array_equal(pictures.squares(stretched)[0], stretched.square(pictures.images[0]))
    assert (pictures.squares(stretched) != pictures.squares(PREPROCESSING)).any()


def test_what_cannot_be_audited_is_counted_and_named(titles: Folders, tmp_path: Path):
    masks = {name: box(30, 10, 10, 40) for name in ("good", "unpainted", "no_raw", "no_clean", "size", "lie", "swap")}
    masks |= {"full": box(0, 0, 80, 64), "corner": box(0, 0, 8, 40), "none": box(0, 0, 0, 0)}
    raw, cleaned = write_set(tmp_path, masks, titled)
    (raw / "no_raw.png").unlink()
    (cleaned / "no_clean.jpg").unlink()
    Image.new("RGB", (10, 10)).save(cleaned / "size.jpg")
    Image.new("RGB", SHAPE[::-1]).save(cleaned / "swap.jpg")
    rows = pq.read_table(cleaned / REPORT).to_pylist()
    for row in rows:
        row["altered"] = {"unpainted": 0.0, "lie": 0.4}.get(row["id"], row["altered"])
    write_report_file(cleaned, [*rows, {**rows[0], "id": "../good"}])
    truth = np.array([True, False, False])
    targets = dict.fromkeys([*masks, "../good", "elsewhere"], truth)
    audited, report, _ = audit(Reader(), (raw, cleaned), targets)
    counts = report["counts"]
    assert [poster.id for poster in audited.posters] == ["good", "full", "corner"]
    assert counts["compared"] == 1 and counts["without_text"] == 2
    assert counts["not_compared"] == {"no room for a control": 1, "text out of the model's view": 1}
    assert {r["id"]: r["reason"] for r in report["left_out"]} == {
        "elsewhere": "not cleaned",
        "no_raw": "missing file",
        "no_clean": "missing file",
        "size": "another size",
        "lie": "outlines do not fit",
        "swap": "another picture",
        "../good": "bad id",
    }
    assert counts["crowded_draws"] == 2 and any("no free place off the text" in note for note in report["notes"])
    only = {"full": truth}
    _, report, _ = audit(Reader(), (raw, cleaned), only)
    assert report["sentence"].startswith("No poster could be compared") and report["metrics"] is None
    with fails("images-none", "1 posters", "no_raw", "missing file", "--images", "--cleaned"):
        audit(Reader(), (raw, cleaned), {"no_raw": truth})
    with fails("images-none", cleaned, "text", "posters clean"):
        audit(Reader(), (raw, cleaned), {"unpainted": truth})
    with fails("table-column", cleaned, "--id-column"):
        audit(Reader(), (raw, cleaned), {"x": truth})


def test_a_model_with_broken_output(titles: Folders):
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 3), torch.nan)

    with fails("not-finite", "p00", "--precision no"):
        audit(Broken(), titles)
