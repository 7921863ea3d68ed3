"""``posters audit``: models that read, that do not, and that see nothing; what is left out, escaped and kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from toolkit_helpers import make_model_folder
from torch import nn

pytest.importorskip("cv2")

from shards.errors import UserError
from shards.labels import LabelSet
from shards.text.fill import make_fill
from shards.text.masks import outlines
from shards.text.report import NAME as REPORT
from shards.text.report import write_report
from toolkit.audit import Audited, AuditOptions, audit_posters, fill_maker, run_audit
from toolkit.audit_arguments import add_audit_arguments
from toolkit.audit_html import page
from toolkit.audit_pictures import make_pictures, reencode
from toolkit.audit_posters import choose_posters, read_posters, read_targets
from toolkit.audit_report import build_report
from toolkit.data.transforms import Preprocessing
from toolkit.decisions import Decisions
from toolkit.distributed import make_accelerator
from toolkit.metrics import sigmoid
from toolkit.model_folder import ModelFolder, load_model_folder
from toolkit.models import HeadSpec

SIZE = 64
SHAPE = (96, 64)
GENRES = ("Comedy", "Drama", "Horror")
Folders = tuple[Path, Path]
PREPROCESSING = Preprocessing(SIZE, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def write_set(
    folder: Path, masks: dict[str, np.ndarray], draw: Callable[[str, np.random.Generator], np.ndarray]
) -> Folders:
    """Raw posters, and what `posters clean` would make of them, masks being known."""
    raw, cleaned = folder / "raw", folder / "cleaned"
    raw.mkdir(parents=True)
    cleaned.mkdir()
    paint = make_fill("surround")
    rows: list[dict[str, Any]] = []
    for number, (name, mask) in enumerate(masks.items()):
        pixels = draw(name, np.random.default_rng(number))
        Image.fromarray(pixels).save(raw / f"{name}.png")
        Image.fromarray(paint(pixels, mask)).save(cleaned / f"{name}.jpg", quality=95, subsampling=0)
        rows.append(
            {
                "id": name,
                "width": mask.shape[1],
                "height": mask.shape[0],
                "altered": float(mask.mean()),
                "fill": "surround",
                "polygons": outlines(mask),
            }
        )
    write_report_file(cleaned, rows)
    return raw, cleaned


def write_report_file(cleaned: Path, rows: list[dict[str, Any]]) -> None:
    """As `posters clean` does; what the audit does not read is as it would be for untouched posters."""
    rest = {
        "passes": 1,
        "boxes_before": 1,
        "boxes_after": 0,
        "text_before": 0.1,
        "text_after": 0.0,
        "seconds": 0.0,
        "skipped": [],
        "skipped_polygons": [],
    }
    write_report(cleaned / REPORT, [rest | row for row in rows], {"fill": "surround"})


def box(top: int, left: int, tall: int, wide: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[top : top + tall, left : left + wide] = True
    return mask


class Reader(nn.Module):
    """Its logits depend on the contrast inside the title's box alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        title = images[:, :, 15:23, 12:48].std(dim=(1, 2, 3))  # rows 31 to 39 of the poster
        return torch.stack([4 * title - 2, -4 * title, title * 0], dim=1)


class Mean(nn.Module):
    """Its logits depend on the mean of all that it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([5 * mean, -3 * mean, mean], dim=1)


class Blind(nn.Module):
    """Always the same."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, -1.0, 0.0]]).expand(len(images), 3)


def folder_of(model: nn.Module) -> ModelFolder:
    config = {"poster_toolkit": {"weights_sha256": "0" * 64}}
    decisions = Decisions.plain(np.full(3, 0.5))
    return ModelFolder(model, LabelSet(GENRES), decisions, PREPROCESSING, config, Path("model"))


def titled(_: str, rng: np.random.Generator) -> np.ndarray:
    """A gradient with black and white bars where the title is."""
    base = np.linspace(60, 180, SHAPE[0])[:, None, None] + rng.integers(0, 40, 3)
    pixels = np.broadcast_to(base, (*SHAPE, 3)).astype(np.uint8).copy()
    pixels[31:39, 12:48] = np.where(np.arange(36) // 3 % 2, 255, 0)[None, :, None]
    return pixels


def patches(_: str, rng: np.random.Generator) -> np.ndarray:
    """Grey squares: every place looks like every other."""
    grey = rng.integers(0, 256, (SHAPE[0] // 8, SHAPE[1] // 8))
    return np.repeat(np.repeat(grey, 8, 0), 8, 1)[..., None].repeat(3, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    masks = {f"p{number:02d}": box(30, 10, 10, 40) for number in range(12)}
    return write_set(tmp_path_factory.mktemp("titles"), masks, titled)


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Posters whose "text" is a square like any other, at a random place."""
    rng = np.random.default_rng(1)
    masks = {f"p{n:02d}": box(int(rng.integers(20, 64)), int(rng.integers(0, 49)), 16, 16) for n in range(60)}
    return write_set(tmp_path_factory.mktemp("anywhere"), masks, patches)


def audit(
    model: nn.Module, folders: Folders, targets: dict[str, np.ndarray] | None = None, **options: Any
) -> tuple[Audited, dict[str, Any], list[Any]]:
    folder = folder_of(model)
    settings = AuditOptions(*folders, workers=1, **{"controls": 2, **options})
    chosen = choose_posters(read_posters(folders[1]), settings, targets)
    audited = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    return audited, *build_report(folder, chosen, audited, settings, fill_maker(None), targets)


def test_a_model_that_reads(titles: Folders):
    _, report, examples = audit(Reader(), titles)
    ratio, effects = report["ratio"], report["effects"]
    assert ratio["value"] > 10 and ratio["low"] > 5 and ratio["posters"] == 12
    assert (
        report["sentence"].startswith("Titles move predictions ") and "only 12 posters" in report["sentence"]
    )
    assert effects["text"]["posters_with_a_flip"] == 1.0 and effects["control"]["posters_with_a_flip"] == 0.0
    assert effects["reencoding"]["probability"] <= effects["control"]["probability"] * 1.5
    adds = {record["genre"]: record["title_adds"] for record in report["genres"]}
    assert adds["Comedy"] > 0.3 and adds["Drama"] < -0.3 and adds["Horror"] == 0.0
    assert report["areas"]["control"] == pytest.approx(1.0) and len(examples) == 12
    assert any("Re-encoding alone" in note for note in report["notes"])


def test_calibration_comes_before_every_figure(titles: Folders):
    folder, settings = folder_of(Reader()), AuditOptions(*titles, workers=1, controls=1)
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
    assert report["sentence"].startswith("No clear difference") and ratio["posters"] == 60


def test_a_blind_model(titles: Folders):
    _, report, _ = audit(Blind(), titles)
    assert report["sentence"].startswith("Neither titles nor the same area elsewhere move")
    assert report["ratio"]["value"] is None and report["effects"]["text"]["probability"] == 0.0
    assert "Neither titles" in page(report, [])
    json.dumps(report, allow_nan=False)


def test_the_same_at_any_batch_size_and_workers(anywhere: Folders):
    one, report, _ = audit(Mean(), anywhere, limit=10, batch_size=1)
    two, other, _ = audit(Mean(), anywhere, limit=10, batch_size=64)
    assert [p.id for p in one.posters] == [p.id for p in two.posters] and len(one.posters) == 10
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)
    assert one.areas == two.areas and report["sentence"] == other["sentence"]
    settings = AuditOptions(*anywhere, limit=10, controls=2, workers=3)
    folder = folder_of(Mean())
    chosen = choose_posters(read_posters(anywhere[1]), settings)
    three = audit_posters(folder, chosen, settings, fill_maker(None), make_accelerator())
    assert (three.logits == two.logits).all()
    elsewhere, _, _ = audit(Mean(), anywhere, limit=10, seed=1)
    assert [p.id for p in elsewhere.posters] != [p.id for p in one.posters]


def test_both_pictures_went_through_the_same_encoder(titles: Folders):
    poster = read_posters(titles[1])[0]
    pictures = make_pictures(poster, *titles, PREPROCESSING, make_fill("surround"), 0, 2)
    raw, again, cleaned, *controls = (np.asarray(image) for image in pictures.images)
    expected = reencode(make_fill("surround")(raw, pictures.text))
    assert (cleaned == np.asarray(expected)).all()
    assert (again == np.asarray(reencode(raw))).all()
    for control, drawn in zip(controls, pictures.controls, strict=True):
        assert (control == np.asarray(reencode(make_fill("surround")(raw, drawn.mask)))).all()
        assert drawn.mask.sum() == pictures.text.sum() and not (drawn.mask & pictures.text).any()


def test_what_cannot_be_audited_is_counted_and_named(titles: Folders, tmp_path: Path):
    masks = {
        name: box(30, 10, 10, 40)
        for name in ("good", "unpainted", "no_raw", "no_clean", "size", "lie", "swap")
    }
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
    assert counts["crowded_draws"] == 2 and any("no place of its own" in note for note in report["notes"])
    only = {"full": truth}
    _, report, _ = audit(Reader(), (raw, cleaned), only)
    assert report["sentence"].startswith("No poster could be compared") and report["metrics"] is None
    with pytest.raises(UserError, match=r"none of 1 posters .* no_raw: missing file"):
        audit(Reader(), (raw, cleaned), {"no_raw": truth})
    with pytest.raises(UserError, match=r"no poster .* had text painted over"):
        audit(Reader(), (raw, cleaned), {"unpainted": truth})
    with pytest.raises(UserError, match="--id-column"):
        audit(Reader(), (raw, cleaned), {"x": truth})


def test_a_model_with_broken_output(titles: Folders):
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 3), torch.nan)

    with pytest.raises(UserError, match="p00 is not finite"):
        audit(Broken(), titles)


def assert_well_formed(html: str) -> None:
    """Every tag is closed, in order."""
    opened: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            assert tag in ("rect", "line")

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Parser().feed(html)
    assert not opened


def test_ids_and_genres_are_escaped(titles: Folders):
    _, report, examples = audit(Reader(), titles, limit=1)
    evil = "<script>alert('x')</script>&"
    report["examples"][0]["id"] = evil
    report["genres"][0]["genre"] = evil
    report["command"]["images"] = evil
    html = page(report, [replace(examples[0], facts={**examples[0].facts, "id": evil})])
    assert "<script" not in html and html.count("&lt;script&gt;") == 3
    assert_well_formed(html)
    assert "http" not in html and html.count("data:image/jpeg;base64,") == 3


def test_an_unknown_fill_and_bad_options(titles: Folders, tmp_path: Path):
    assert fill_maker(None)("model") is make_fill("surround")
    with pytest.raises(UserError, match="--fill"):
        fill_maker(None)("crayon")
    for wrong in (
        {"batch_size": 0},
        {"workers": -1},
        {"controls": 0},
        {"limit": 0},
        {"images": tmp_path / "no"},
    ):
        with pytest.raises(UserError):
            replace(AuditOptions(*titles), **wrong)
    with pytest.raises(UserError):
        read_posters(tmp_path)


def test_controls_of_a_network_are_painted_by_it_only_if_it_is_given(monkeypatch):
    made: list[tuple[str, Path | None]] = []

    def make(name: str, model: Path | None = None) -> Callable[..., np.ndarray]:
        made.append((name, model))
        return lambda image, mask: image

    monkeypatch.setattr("toolkit.audit.make_fill", make)
    fill_maker(None)("model")
    with_network = fill_maker(Path("net.onnx"))
    with_network("model"), with_network("telea"), with_network("telea")
    assert made == [("surround", None), ("model", Path("net.onnx")), ("telea", None)]


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_audit_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_command_with_labels(anywhere: Folders, tmp_path: Path, capsys, caplog):
    model = make_model_folder(tmp_path / "model", LabelSet(GENRES), HeadSpec("linear", (), 0.0))
    lists = [("Comedy",), ("Drama", "Horror"), ("Drama", "Musical")]
    csv = tmp_path / "meta.csv"
    lines = [f"p{number:02d},{'|'.join(lists[number % 3])}" for number in range(32)]
    csv.write_text("\n".join(["id,genre", *lines, "p40,Musical", "nowhere,Drama"]))
    out = tmp_path / "out"
    args = arguments(
        "--model", model, "--images", anywhere[0], "--cleaned", anywhere[1], "--out", out, "--controls", 2,
        "--metadata", csv, "--id-column", "id", "--genre-column", "genre", "--workers", 1,
    )  # fmt: skip
    assert args.run(args) == 0
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
    ids = [
        i for i, problem in zip(rows["id"], rows["not_compared"], strict=True) if not problem and i != "p40"
    ]
    folder = load_model_folder(model)
    pixels = np.stack([folder.preprocessing((anywhere[0] / f"{i}.png").read_bytes()) for i in ids])
    with torch.inference_mode():
        scores = sigmoid(folder.model(folder.preprocessing.normalize(torch.from_numpy(pixels))).numpy())
    targets = np.array([[g in lists[int(i[1:]) % 3] for g in GENRES] for i in ids])
    assert report["metrics"]["posters"] == len(ids)
    assert report["metrics"]["raw"]["mAP"] == pytest.approx(
        average_precision_score(targets, scores), abs=1e-6
    )

    html = (out / "audit.html").read_text()
    assert report["sentence"].split(":")[0] in html and "<script" not in html
    with Image.open(out / "audit.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000


def test_a_csv_of_other_genres_is_refused(tmp_path: Path):
    csv = tmp_path / "meta.csv"
    csv.write_text("id,genre\na,Opera\n")
    with pytest.raises(UserError, match="--genre-column"):
        read_targets(csv, LabelSet(GENRES), "id", "genre", "|", "utf-8-sig")


def test_without_opencv_one_line(titles: Folders, tmp_path: Path, monkeypatch):
    def absent() -> None:
        raise UserError("no")

    monkeypatch.setattr("toolkit.audit.cv2", absent)
    args = arguments("--model", tmp_path, "--images", titles[0], "--cleaned", titles[1])
    with pytest.raises(UserError, match=r"needs opencv: pip install -e '.\[clean"):
        run_audit(args)
