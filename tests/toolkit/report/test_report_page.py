"""The page and its plots: self-contained, escaped, everything there (test_report_browser.py looks at it)."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from html_tools import HtmlReader
from matplotlib.font_manager import fontManager
from metric_tools import threshold_metrics
from PIL import Image
from report_tools import GENRES, NASTY, all_plots, decisions, inputs, picture, said, simulate, trained_on
from sklearn.metrics import average_precision_score

from shards.visuals.templates import ENVIRONMENT, SCRIPT
from toolkit.metrics.helpers import sigmoid
from toolkit.metrics.judgement import SEEN
from toolkit.metrics.weighted import Outcome
from toolkit.report.build import Report, build_report
from toolkit.report.examples import MAX_PICTURE_BYTES, small_picture
from toolkit.report.output import render_page
from toolkit.report.plots.common import DENSITY, FAMILIES, Plot, fonts_for, label_points, new_figure
from toolkit.report.plots.reliability_plots import genre_bins, genre_reliability_plot
from toolkit.report.plots.threshold_plots import precision_recall_steps, support_plot, sweep, sweep_plot
from toolkit.report.plots.training_curves import read_training_curves

COURSE = """epoch,update,train_loss,val_loss,val_mAP,val_micro_f1,val_macro_f1
0,5,1.5,0.7,0.2,0.3,0.1
1,10,1.1,0.6,0.3,0.4,0.2
2,15,"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    run = tmp_path_factory.mktemp("run")
    (run / "epochs.csv").write_text(COURSE)
    return build_report(inputs(path=run / "model"), label_errors=False, rounds=20)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_page(report)


def test_tags_match_and_ids_are_there(page: str):
    reader = HtmlReader(page)
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    links = [attributes["href"] for attributes in reader.all("a")]
    assert links and all(link is not None and link.startswith("#") and link[1:] in ids for link in links)
    assert page.startswith("<!doctype html>") and 'name="viewport"' in page


def test_nothing_is_fetched_and_only_the_script_of_the_page_runs(page: str):
    reader = HtmlReader(page)
    (policy,) = (meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    hashed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{hashed}'" in policy
    assert len(reader.all("script")) == 1 and page.count(f"<script>{SCRIPT}</script>") == 1
    assert not reader.all("link") and not reader.all("iframe")
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        if "src" in attributes:
            assert (attributes["src"] or "").startswith("data:image/")
    assert not re.search(r"https?://|url\((?!#)|@import", re.sub(r'src="[^"]*"', "", page))


def test_every_picture_has_words(page: str):
    images = HtmlReader(page).all("img")
    assert len(images) > 10 and all(image.get("alt") for image in images)
    drawings = [tag for tag in HtmlReader(page).all("div") if tag.get("class") == "drawing"]
    assert len(drawings) > 10 and all(tag["role"] == "img" and tag["aria-label"] for tag in drawings)


def test_names_are_escaped_and_all_there(page: str, report: Report):
    text = "".join(HtmlReader(page).text)
    for genre in GENRES:
        assert text.count(genre) >= 3, genre
    assert NASTY not in page and "&lt;b&gt;&amp;&#34;" in page
    assert "<i>" not in page and "&lt;i&gt;" in page
    shown = {example.id for group in report.groups for example in group.examples}
    assert shown and all(name in text and name not in page for name in shown)
    assert "run 2 <u>" in text and "<u>" not in page and "<s>" not in page


def test_numbers_of_the_json_are_on_the_page(page: str, report: Report):
    text = unescape(re.sub(r"<[^>]+>", " ", re.sub(r'<span class="whole">(.*?)</span>', r"\1", page)))
    for row in report.numbers["headline"]:
        assert f"{row['value']:.3f}" in text
    for row in report.numbers["per_genre"]:
        if row["ap"] is not None:
            assert f"{row['ap']:.3f}" in text and f"{row['ap_low']:.3f} to {row['ap_high']:.3f}" in text
    assert report.numbers["verdict"]["sentence"] in text
    assert "crop: [0.5, 1.0]" in text and "ab" * 32 in text and "posters evaluate --model" in text


def test_the_page_says_which_weights_and_whose_training(page: str):
    given = inputs()
    assert given.other is not None
    mine, theirs = (trained_on(given.model, "e" * 16, weights="ema"), trained_on(given.other, "f" * 16, weights="raw"))
    html = render_page(build_report(replace(given, model=mine, other=theirs), label_errors=False, rounds=5))
    told = unescape(html)
    assert "<dt>weights</dt><dd>moving average of the trained weights (EMA); sha256 abab" in told
    assert "<dt>reference: weights</dt><dd>trained weights (raw); sha256 abab" in told
    for said_of, digit in (("", "e"), ("reference: ", "f")):
        line = f"<dt>{said_of}trained on</dt><dd>shard set {digit * 16} (not the shard set of this page)</dd>"
        assert line in told
    assert told.count("was trained on another shard set") == 2
    assert "<dt>weights</dt><dd>sha256 abab" in page  # older models do not say
    assert "another shard set" not in page and "not the shard set of this page" not in page


def test_pictures_are_small_jpegs_and_an_unreadable_one_is_said(page: str):
    sources = [i["src"] or "" for i in HtmlReader(page).all("img")]
    jpegs = [s.partition(",")[2] for s in sources if s.startswith("data:image/jpeg")]
    assert len(jpegs) >= 20
    for data in jpegs:
        raw = base64.b64decode(data)
        assert len(raw) <= MAX_PICTURE_BYTES
        with Image.open(io.BytesIO(raw)) as image:
            assert image.format == "JPEG" and image.size[1] >= 200
    assert small_picture(picture, 3) is None and small_picture(picture, 4) is not None
    assert len(page) < 6_000_000


def test_a_poster_that_cannot_be_read_leaves_a_tile():
    given = replace(inputs(other=False), picture=lambda sample: b"")
    assert "unreadable image" in render_page(build_report(given, label_errors=False, rounds=5))


# --- plots ------------------------------------------------------------------------------------------------


def test_plots_are_pngs_of_their_size(report: Report):
    plots = all_plots(report)
    names = [plot.name for plot in plots]
    assert len(set(names)) == len(names)
    assert {"support-f1", "threshold-sweep", "reliability", "together", "says-instead"} <= set(names)
    assert {"training-loss", "training-metrics"} <= set(names)
    assert sum(name.startswith("precision-recall") for name in names) == 4  # the last genre has no positive
    for plot in plots:
        with Image.open(io.BytesIO(plot.png)) as image:
            assert image.format == "PNG" and image.width == pytest.approx(plot.width * DENSITY / 96, abs=2)
            assert np.asarray(image.convert("L")).std() > 3, plot.name


def test_names_in_plots_are_text_in_the_page_and_ids_are_unique(page: str, report: Report):
    row = {"genre": '<script>x</script> id="a" 恐怖', "support": 10, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6}
    inline = support_plot([row]).inline
    assert '&lt;script&gt;x&lt;/script&gt; id="a" 恐怖</text>' in inline and "<script" not in inline
    assert "xmlns" not in inline and "<metadata" not in inline and "width=" not in inline.split(">")[0]
    ids = re.findall(r'<[^>]* id="([^"]*)"', page)
    assert len(ids) > 100 and len(set(ids)) == len(ids)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]*)', page))
    assert used and used <= set(ids)
    assert ">Comedy</text>" in report.plots["together"].inline


def test_a_large_plot_is_a_png_in_the_page(report: Report, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.report.plots.common.MAX_INLINE", 0)
    assert "data:image/png;base64" in render_page(report) and 'class="drawing"' not in render_page(report)


def test_a_warning_names_letters_that_no_font_has(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(fontManager, "ttflist", [])
    with fonts_for(["Drama", "恐怖"], "the plots"):
        assert FAMILIES.get() == ("DejaVu Sans",)
    assert "the plots cannot show 2 characters of the names" in caplog.text


def test_equal_reports_have_equal_bytes(report: Report, page: str):
    again = build_report(inputs(path=report_path(report)), label_errors=False, rounds=20)
    assert render_page(again) == page


def report_path(report: Report) -> Path:
    return Path(report.numbers["facts"]["path"])


def test_plots_show_the_data():
    targets, logits = simulate()
    probabilities = decisions().probabilities(logits)

    def draw(scores: np.ndarray) -> Plot:
        reached = threshold_metrics(targets, scores, decisions().thresholds)
        return sweep_plot(sweep(Outcome(targets, scores=scores)), decisions(), reached)

    assert draw(probabilities).png == draw(probabilities).png != draw(probabilities**2).png
    bins = genre_bins(targets[:, 0], sigmoid(logits[:, 0]), probabilities[:, 0])
    diagrams = [genre_reliability_plot("a", "A", bins, calibrated=calibrated) for calibrated in (True, False)]
    assert len({plot.png for plot in diagrams}) == 2 == len({plot.alt for plot in diagrams})
    row = {"genre": "A", "support": 10, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6}
    assert support_plot([row]).png != support_plot([row | {"f1": 0.6}]).png


def test_the_area_under_the_steps_is_ap():
    targets, logits = simulate()
    for column in range(4):
        recall, precision = precision_recall_steps(targets[:, column], logits[:, column])
        area = -(np.diff(recall) * precision[:-1]).sum()
        assert area == pytest.approx(average_precision_score(targets[:, column], logits[:, column]))
        assert recall[0] == 1 and recall[-1] == 0


def test_names_beside_points_meet_nothing_and_stay_inside():
    _figure, axes = new_figure()
    places = np.random.default_rng(0).random((40, 2))
    places[1] = places[0]  # two at one place
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axes, places[:, 0].tolist(), places[:, 1].tolist(), [f"Genre {k}" for k in range(40)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 20 <= len(boxes) < 40 and axes.texts[0].get_text() == "Genre 0"
    inside = axes.get_window_extent()
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.contains(*point) for point in axes.transData.transform(places))


def test_names_are_not_nearer_to_other_points():
    _figure, axes = new_figure()
    places = np.random.default_rng(0).random((40, 2))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axes, places[:, 0].tolist(), places[:, 1].tolist(), [str(k) * 5 for k in range(40)])
    points = axes.transData.transform(places)
    assert len(axes.texts) >= 15
    for text in axes.texts:
        box = text.get_window_extent()
        away = np.hypot(*(points - np.clip(points, (box.x0, box.y0), (box.x1, box.y1))).T)
        own = int(text.get_text()[: len(text.get_text()) // 5])
        assert away[own] <= away.min() + 1


def test_a_name_without_a_place_is_still_in_the_words():
    row = {"support": 10, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6}
    rows = [row | {"genre": f"Genre {k}"} for k in range(30)]
    assert support_plot(rows).alt.count("Genre") == 30


def test_the_course_leaves_out_half_a_row(tmp_path: Path):
    assert read_training_curves(tmp_path / "model") is None
    (tmp_path / "epochs.csv").write_text(COURSE)
    course = read_training_curves(tmp_path / "model")
    assert course is not None and course["epoch"] == [0, 1] and course["val_mAP"] == [0.2, 0.3]
    (tmp_path / "epochs.csv").write_text("something,else\n1,2\n")
    assert read_training_curves(tmp_path / "model") is None


def test_a_course_that_is_no_table_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "epochs.csv").write_text("epoch,val_loss\n0,nan\n1,inf\n2,-\n3,0.5\n")
    assert read_training_curves(tmp_path / "model") == {"epoch": [0, 1, 2, 3], "val_loss": [None, None, None, 0.5]}
    (tmp_path / "epochs.csv").write_bytes(b"epoch,\xff\n0,1\n")
    assert read_training_curves(tmp_path / "model") is None
    assert "epochs.csv is not a table of epochs" in caplog.text


def test_a_model_outside_a_run_has_no_training_section():
    html = render_page(build_report(inputs(other=False), label_errors=False, rounds=5))
    assert "Training curves" not in html and "run 2" not in html


@pytest.mark.parametrize("genres", [1, 2])
def test_few_genres_and_few_samples(genres: int):
    given = inputs(other=False)
    targets, logits = given.targets[:6, :genres].copy(), given.model.logits[:6, :genres]
    targets[0, 0] = True
    names = GENRES[:genres]
    chosen = replace(decisions(), thresholds=np.full(genres, 0.5), scale=np.ones(genres), bias=np.zeros(genres))
    small = replace(given, genres=names, targets=targets, train_prevalence=np.full(genres, 0.5),
                    model=said(logits, chosen))  # fmt: skip
    report = build_report(small, label_errors=False, rounds=10)
    HtmlReader(render_page(report))
    assert [c["kind"] for c in report.numbers["comparisons"]] == ["baselines"]  # one threshold anyway


def test_a_split_without_a_positive_has_a_page_all_the_same():
    given = inputs(other=False)
    report = build_report(replace(given, targets=np.zeros_like(given.targets)), label_errors=False, rounds=5)
    assert "no metric can be computed" in report.numbers["verdict"]["sentence"]
    HtmlReader(render_page(report))


def test_small_charts_in_tables():
    macros = ENVIRONMENT.get_template("toolkit.report/macros.html").make_module({"seen": SEEN})
    timer, span = (getattr(macros, name) for name in ("meter", "span"))
    assert "width:25.0%" in timer({"v": 0.25, "l": 0.2, "h": 0.3}, "v", "l", "h")
    assert "left:20.0%;width:10.0%" in timer({"v": 0.25, "l": 0.2, "h": 0.3}, "v", "l", "h")
    assert timer({"v": None, "l": None, "h": None}, "v", "l", "h") == ""
    row = {"difference": 0.1, "low": 0.0, "high": 0.2, "words": "no difference seen"}
    assert "left:50.0%;width:50.0%" in span(row, 0.2) and "left:75.0%" in span(row, 0.2)
    assert "real" in span(row | {"words": "better"}, 0.2) and "real" not in span(row, 0.2)
