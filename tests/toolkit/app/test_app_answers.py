"""What `posters app` answers, without a page: genres, heat, text, refusals; and what it says of them in HTML."""

from __future__ import annotations

import copy
import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from failing import fails
from html_tools import HOSTILE, assert_text_only
from PIL import Image
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.inputs.images import ANY, decode
from shards.visuals.templates import render
from toolkit.app import decoder as app_decoder
from toolkit.app import html, start
from toolkit.app import service as app_answers
from toolkit.app.board import Board
from toolkit.app.decoder import Refused
from toolkit.app.overlays import heat_picture, scale_colours
from toolkit.app.service import Line, Poster, PredictionService, first_genre, text_removal
from toolkit.app.wording import Wording
from toolkit.cli.main import main
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.device.defaults import CPU_ROWS
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction.files import predict_files


@pytest.fixture(scope="module")
def answers(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> PredictionService:
    folder = tmp_path_factory.mktemp("answers") / "model"
    head = HeadSpec("ensemble", (8,), 0.0, 2)
    make_model_folder(folder, labels, head, 96, decisions=some_decisions(len(labels)), fit="stretch")
    return PredictionService(load_model_folder(folder), *text_removal(True, "surround", None))


def poster(answers: PredictionService, path: Path) -> Poster:
    (found,) = answers.read([path])
    assert isinstance(found, Poster)
    return found


def line(genre: str, probability: float, threshold: float) -> Line:
    return Line(genre, probability, threshold, probability >= threshold)


def test_probabilities_are_those_of_predict(answers: PredictionService, posters: Path):
    paths = sorted((posters / "images").glob("p000[0-4]*"))
    found = answers.read(paths)
    expected = predict_files(answers.folder, paths, make_accelerator(None))
    assert len(found) == len(paths) > CPU_ROWS  # more than one pass
    for item, probabilities in zip(found, expected.probabilities, strict=True):
        assert isinstance(item, Poster)
        np.testing.assert_allclose(item.probabilities, probabilities, atol=1e-5)


def test_bad_files_say_why_and_keep_their_place(answers: PredictionService, posters: Path, tmp_path: Path):
    images = posters / "images"
    (tmp_path / "huge.jpg").write_bytes(b"\xff" * (app_decoder.MAX_MB * 2**20 + 1))
    found = answers.read(
        [images / "bad_not_an_image.jpg", images / "p00001.jpg", images / "bad_truncated.jpg",
         images / "bad_zero_bytes.jpg", tmp_path / "huge.jpg", tmp_path / "gone.jpg"]
    )  # fmt: skip
    assert [item.name for item in found] == [
        "bad_not_an_image.jpg", "p00001.jpg", "bad_truncated.jpg", "bad_zero_bytes.jpg", "huge.jpg", "gone.jpg",
    ]  # fmt: skip
    reasons = [item.message if isinstance(item, Refused) else "" for item in found]
    for reason, said in zip(
        reasons, ["not an image", "", "truncated", "", "larger than 20 MB", "No such file"], strict=True
    ):
        assert said in reason and "\n" not in reason
    assert [isinstance(item, Refused) for item in found] == [True, False, True, True, True, True]


def test_outputs_that_are_not_finite_are_no_answer(answers: PredictionService, monkeypatch: pytest.MonkeyPatch):
    network = answers._forward.network

    def broken(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits = network(images)[0].clone()
        logits[1:] = torch.nan
        return logits, None

    monkeypatch.setattr(answers._forward, "network", broken)
    squares = [np.zeros((96, 96, 3), np.uint8)] * 3
    with pytest.raises(UserError, match=r"outputs are not finite for 2 of 3 images \(picture 2, picture 3\)"):
        answers.probabilities(squares)
    assert np.isfinite(answers.probabilities(squares[:1])).all()


def test_no_more_files_than_promised(answers: PredictionService, posters: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app_answers, "MAX_FILES", 2)
    *found, last = answers.read([posters / "images" / "p00001.jpg"] * 5)
    assert len(found) == 2 and all(isinstance(item, Poster) for item in found)
    assert last == Refused("and 3 more files", "not decoded: the limit is 2 files at a time")


def test_nothing_dropped_is_no_fault(answers: PredictionService):
    assert answers.read([]) == []


def test_lines_are_sorted_and_named_from_the_threshold_on(answers: PredictionService):
    thresholds = answers.folder.thresholds
    probabilities = thresholds.copy()
    probabilities[1] -= 0.01
    lines = answers.lines(probabilities)
    assert [line.probability for line in lines] == sorted(probabilities, reverse=True)
    assert {line.genre for line in lines if not line.named} == {answers.folder.labels.genres[1]}


def test_the_first_heat_map_is_of_the_most_probable_relative_to_its_threshold():
    lines = [line("Drama", 0.6, 0.5), line("War", 0.2, 0.1), line("Noir", 0.01, 0.3)]
    assert first_genre(lines) == "War"
    assert line("All", 0.2, 0.0).named and line("All", 0.2, 0.0).ratio > 1000


def test_heat_of_each_genre(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")
    maps = [answers.heat(shown, genre) for genre in answers.folder.labels.genres]
    assert all(heat is not None and heat.shape == (96, 96) for heat in maps)
    assert len({heat.tobytes() for heat in maps if heat is not None}) == len(maps)


def test_without_its_text(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")  # 400x600 pixels
    painted = answers.paint(shown)
    assert shown.painted is painted and answers.paint(shown) is painted  # once
    assert 0.02 < painted.share < 0.6 and painted.polygons
    for polygon in painted.polygons:
        assert polygon.shape[1] == 2 and polygon.min() >= 0 and polygon.max() <= 1
    assert np.abs(painted.probabilities - shown.probabilities).max() > 1e-4
    difference = np.abs(np.asarray(decode(painted.jpeg, ANY), int) - np.asarray(shown.image, int)).max(axis=2) > 40
    assert 0.001 < difference.mean() < painted.share


def test_a_picture_without_text_keeps_its_answer(answers: PredictionService, tmp_path: Path):
    Image.new("RGB", (300, 400), (90, 120, 150)).save(tmp_path / "plain.png")
    shown = poster(answers, tmp_path / "plain.png")
    painted = answers.paint(shown)
    assert painted.share == 0 and np.array_equal(painted.probabilities, shown.probabilities)


def test_large_pictures_are_shrunk_for_the_text(
    answers: PredictionService, posters: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app_answers, "TEXT_PIXELS", 60_000)  # 200x300
    painted = answers.paint(poster(answers, posters / "images" / "p00003.jpg"))
    assert decode(painted.jpeg, ANY).size == (200, 300) and painted.polygons


def test_a_file_that_went_away_says_so(answers: PredictionService, posters: Path, tmp_path: Path):
    path = tmp_path / "short.jpg"
    path.write_bytes((posters / "images" / "p00002.jpg").read_bytes())
    shown = poster(answers, path)
    path.unlink()
    with fails("image-unreadable", "short.jpg", "upload"):
        answers.paint(shown)


def test_several_visitors_at_once(answers: PredictionService, posters: Path):
    """Heat maps hook into the model: a prediction of another thread must not meet the hooks."""
    usual = sys.getswitchinterval()
    path = posters / "images" / "p00003.jpg"
    shown = poster(answers, path)
    genres = answers.folder.labels.genres
    heats = {genre: answers.heat(shown, genre) for genre in genres}

    def visit(genre: str) -> bool:
        same = True
        for _ in range(5):
            heat, expected = answers.heat(shown, genre), heats[genre]
            assert heat is not None and expected is not None
            same &= np.array_equal(heat, expected)
            same &= np.allclose(poster(answers, path).probabilities, shown.probabilities, atol=1e-6)
        return same

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(visit, genres[:4]))
    finally:
        sys.setswitchinterval(usual)


def test_text_is_off_with_a_note(monkeypatch: pytest.MonkeyPatch):
    assert text_removal(False, "surround", None) == (
        None, "Text detection is off: this page was started with --no-text.",
    )  # fmt: skip
    monkeypatch.setattr(app_answers, "absent", lambda *modules: ["rapidocr"])
    removal, note = text_removal(True, "surround", None)
    assert removal is None and "rapidocr not installed" in note and "'poster-toolkit[app]'" in note


def test_a_fill_network_that_cannot_be_loaded_stops_the_start(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.onnx"):
        text_removal(True, "surround", tmp_path / "none.onnx")


CROP = Preprocessing(64, 1.0, (0.5,) * 3, (0.5,) * 3, "crop")


def test_heat_lies_where_the_model_looked():
    """A map that is hot in its upper left corner, on an upright poster of which the model sees the middle."""
    heat = np.zeros((64, 64))
    heat[:16, :16] = 2.0
    image = Image.new("RGB", (100, 160), (100, 110, 120))
    assert CROP.view(*image.size) == (0, 30, 100, 130)
    pixels = np.asarray(heat_picture(image, heat, (0, 30, 100, 130))).astype(int)
    assert pixels[:30].min() > 200 and pixels[130:].min() > 200  # pale outside
    bright = pixels.sum(axis=2) > pixels[100, 70].sum() + 100
    assert bright[34:50, 4:20].all() and not bright[70:129, 2:98].any() and not bright[31:129, 50:98].any()
    assert Preprocessing(64, 1.0, CROP.mean, CROP.std, "stretch").view(100, 160) == (0, 0, 100, 160)
    nothing = np.asarray(heat_picture(image, 0 * heat, (0, 0, 100, 160)))
    assert (nothing == nothing[0, 0]).all()


def test_the_scale_is_legible():
    """Lightness rises along the scale, so that it reads in grey, too."""
    rgb = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in scale_colours()])
    light = rgb @ [0.299, 0.587, 0.114]
    assert (np.diff(light)[2:] > 0).all() and light[-1] - light[0] > 90


def test_names_are_text_in_every_fragment(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")
    genres = (HOSTILE, *answers.folder.labels.genres[1:])
    shown.name, shown.true = HOSTILE, (HOSTILE,)
    board = Board()
    board.posters, board.chosen, board.corrections = [shown], shown, {HOSTILE: (HOSTILE,)}
    hostile = copy.copy(answers)
    hostile.folder = replace(answers.folder, labels=LabelSet(genres))
    hostile.words, hostile.no_heat = Wording(HOSTILE, HOSTILE, HOSTILE), HOSTILE
    lines = [line(HOSTILE, 0.7, 0.4)]
    painted = replace(answers.paint(shown), rejected=[np.zeros((4, 2))], reasons=[HOSTILE])
    heat = np.ones((96, 96))
    fragments = [
        render("toolkit.app/refusals.html", refused=[Refused(HOSTILE, HOSTILE)]),
        html.genres_card(shown, board, hostile),
        html.uploads_table(board, hostile),
        html.heat_card(shown, HOSTILE, heat, hostile),
        html.heat_card(shown, "War", None, hostile),
        start.header(hostile),
        render("toolkit.app/text.html", said=HOSTILE, words=hostile.words),
        render("toolkit.app/counts.html", corrections=board.corrections, error=HOSTILE),
        html.text_card(shown, painted, lines, lines, hostile.words),
    ]
    for fragment in fragments:
        assert_text_only(fragment, HOSTILE)


def test_the_table_says_what_is_named(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")
    two = copy.copy(answers)
    decisions = Decisions.plain([0.4, 0.2])
    two.folder = replace(answers.folder, labels=LabelSet(("Sci-Fi & more", "War")), decisions=decisions)
    shown.probabilities = np.array([0.7, 0.1])
    page = html.genres_card(shown, Board(), two)
    assert "Named: <b>Sci-Fi &amp; more</b> (70%)" in page
    assert re.findall(r'<tr class="(\w+)"', page) == ["named", "under"]
    assert (
        "1.75 x" in page and "0.50 x" in page and 'value="0.4000" aria-label="Threshold of Sci-Fi &amp; more"' in page
    )
    shown.probabilities = np.array([0.3, 0.1])
    assert "No genre reaches its threshold" in html.genres_card(shown, Board(), two)
    assert render("toolkit.app/refusals.html", refused=[]) == ""


def test_markup_of_a_model_without_heat_maps(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")
    blind = PredictionService(answers.folder)
    blind._cam, blind.no_heat = None, "This architecture has no heat map (why)."
    page = html.heat_card(shown, "War", blind.heat(shown, "War"), blind)
    assert "This architecture has no heat map (why)." in page


def test_markup_of_the_difference(answers: PredictionService, posters: Path):
    shown = poster(answers, posters / "images" / "p00003.jpg")
    page = html.text_card(
        shown, answers.paint(shown), [line("War", 0.5, 0.4), line("Noir", 0.2, 0.3)],
        [line("Noir", 0.45, 0.3), line("War", 0.1, 0.4)], answers.words,
    )  # fmt: skip
    rows = re.findall(r"<tr data-genre.*?</tr>", page)
    assert "-40.0" in rows[0] and "down" in rows[0] and rows[0].count("✓") == 1
    assert "+25.0" in rows[1] and "up" in rows[1] and rows[1].count("✓") == 1


def test_a_split_without_shards_is_one_line(tmp_path: Path):
    with fails("option-missing", "--split", "--shards"):
        main(["app", "--model", str(tmp_path / "none"), "--split", "val"])


@pytest.mark.parametrize(
    ("options", "facts"),
    [(["--port", "0"], ["--port", "1 to 65535", "not 0"]), (["--host", "192.0.2.1"], ["192.0.2.1", "7860", "--host"])],
)
def test_a_bad_address_is_one_line(tmp_path: Path, options: list[str], facts: list[str]):
    with fails("option-value", *facts):
        main(["app", "--model", str(tmp_path / "none"), "--no-text", *options])


def test_a_missing_model_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="no model folder at"):
        main(["app", "--model", str(tmp_path / "none"), "--no-text"])


def test_a_port_that_is_taken_is_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with fails("option-value", f"port {port} ", "--host", "--port"):
            main(["app", "--model", str(tmp_path / "none"), "--port", str(port)])


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="`posters app` needs gradio"):
        main(["app", "--model", str(tmp_path)])


def test_the_start_page_quotes_the_metrics_of_the_thresholds(answers: PredictionService):
    assert start.quality(answers.folder) is None
    assert "posters evaluate" in start.header(answers)
    row = {"label": "own", "metrics": {"micro_precision": 0.62, "micro_recall": 0.58}}
    values = {"num_samples": 1234, "thresholds": [row], "baselines": [], "ranking": {}, "loss": 0.2}
    path = answers.folder.path / "metrics-test.json"
    try:
        path.write_text(json.dumps({**values, "shard_set": "none", "decisions": answers.folder.decisions.fingerprint}))
        page = start.header(answers)
        for words in ("it names, 62 are right", "it finds 58", "1,234 posters of the split test", "No poster of this"):
            assert words in page
        path.write_text(path.read_text().replace('"none"', '"another"'))
        assert "not the shard set of training" in start.header(answers)
        path.write_text(json.dumps({**values, "decisions": "older"}))
        assert start.quality(answers.folder) is None
    finally:
        path.unlink()
