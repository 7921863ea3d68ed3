"""The comparison of several models: its numbers, the choice, the disputed posters and the page."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from report_tools import GENRES, NASTY, SAMPLES, decisions, inputs, said, simulate, trained_on

from toolkit.comparison.build import JUDGED, Comparison, build_comparison
from toolkit.comparison.disagreement import disagreement, most_disputed
from toolkit.comparison.output import check_folder, render_page, sentences, write_comparison
from toolkit.comparison.speed import Cost
from toolkit.metrics.bootstrap import Difference
from toolkit.metrics.judgement import judged
from toolkit.metrics.registry import METRICS, PLACES
from toolkit.report.inputs import ReportInputs

#: Names that strangers may give.
NAMES = ["first", "<script>alert(1)</script>", "مقارنة 映画 " + "long" * 40]
MEASURED = {"device": "a <b>device", "precision": "no", "batch_size": 32, "batches": 5}
#: So many that the smallest p stays below 5% after the correction.
ROUNDS = 800


def each() -> list[ReportInputs]:
    """A weak model, a strong one, and nearly the strong one, for the same posters."""
    base, strong = inputs(other=False), simulate(skill=2.0)[1]
    weak = np.random.default_rng(9).permutation(strong)
    near = strong + 0.01 * np.random.default_rng(3).normal(size=strong.shape)
    units = np.arange(SAMPLES)
    return [
        replace(base, model=said(logits, decisions(), name, Path(f"{at}/model")), units=units)
        for at, (name, logits) in enumerate(zip(NAMES, (weak, strong, near), strict=True))
    ]


def costs(*speeds: float) -> list[Cost]:
    return [Cost(speed, 1_000_000 * at, 4.0 * at) for at, speed in enumerate(speeds, 1)]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return build_comparison(each(), costs(10.0, 20.0, 30.0), MEASURED, ROUNDS)


def test_the_fastest_of_the_models_that_cannot_be_told_apart(comparison: Comparison):
    choice = comparison.numbers["choice"]
    assert choice["best"] in (1, 2) and choice["better_than"] == [0]
    assert choice["take"] == 2 and choice["equal"] == [3 - choice["best"]]
    slow = build_comparison(each(), costs(99.0, 20.0, 3.0), MEASURED, ROUNDS).numbers
    assert slow["choice"]["take"] == 1  # not the first, which is worse
    near = build_comparison(each(), costs(99.0, 20.0, 21.0), MEASURED, ROUNDS).numbers["choice"]
    assert near["take"] == near["best"]  # a difference in speed that other work of the machine can make
    answer = sentences(slow)
    assert answer["title"] == f"Take {NAMES[1]}" and "No difference was seen" in " ".join(answer["reasons"])


def test_differences_are_to_the_first_and_judged_together(comparison: Comparison):
    first, strong, near = (model["metrics"] for model in comparison.numbers["models"])
    assert list(first) == [metric.key for metric in PLACES["report"]]
    assert all(row["difference"] is None and row["words"] == "" for row in first.values())
    for key, row in strong.items():
        assert row["difference"] == pytest.approx(row["value"] - first[key]["value"])
        assert (row["words"] != "") == (key in JUDGED)
    # Without the difference of the choice, the correction can only be weaker.
    keys = [(model, key) for model in (strong, near) for key in JUDGED]
    plain = [Difference(m[k]["difference"], m[k]["difference_low"], m[k]["difference_high"], 0.0) for m, k in keys]
    for (model, key), weaker in zip(keys, judged(plain, [METRICS[key].better for _, key in keys]), strict=True):
        assert model[key]["words"] in (weaker.words, "no difference seen")
    assert strong["mAP"]["words"] == "better" and strong["loss"]["words"] == "better"


def test_a_model_that_may_have_seen_the_posters_is_not_chosen():
    some = each()
    seen = replace(some[1], model=trained_on(some[1].model, "another set"))
    numbers = build_comparison([some[0], seen, some[2]], costs(1.0, 50.0, 1.0), MEASURED, ROUNDS).numbers
    assert numbers["choice"]["take"] == 2
    assert [model["may_have_seen"] for model in numbers["models"]] == [False, True, False]
    (warning,) = sentences(numbers)["warnings"]
    assert NAMES[1] in warning and "not chosen" in warning
    every = [replace(one, model=trained_on(one.model, "another set")) for one in some]
    numbers = build_comparison(every, costs(1.0, 1.0, 1.0), MEASURED, ROUNDS).numbers
    (warning,) = sentences(numbers)["warnings"]
    assert "No model was trained on this shard set" in warning and numbers["choice"]["take"] is not None


def test_no_positives_is_said():
    none = [replace(one, targets=np.zeros_like(one.targets)) for one in each()]
    numbers = build_comparison(none, costs(1.0, 2.0, 3.0), MEASURED, 20)
    assert numbers.numbers["choice"]["take"] is None and "No model can be chosen" in render_page(numbers)


def test_disagreement_counts_pairs_and_shows_near_duplicates_once():
    rng = np.random.default_rng(0)
    named = [rng.random((30, 4)) < 0.5 for _ in range(4)]
    pairs = [np.sum(a != b, axis=1) for at, a in enumerate(named) for b in named[:at]]
    assert disagreement(named) == pytest.approx(np.mean(pairs, axis=0))
    found = most_disputed(named, [one.astype(float) for one in named], np.arange(30) // 2, 50)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert len({row // 2 for row, _ in found}) == len(found) <= 15
    assert most_disputed([named[0]] * 3, [named[0].astype(float)] * 3, None, 5) == []


def test_the_page_escapes_names_and_shows_what_each_said(comparison: Comparison):
    page = render_page(comparison)
    weights = " ".join(["ab" * 32] * 3)
    assert f'<meta name="page-of" content="Comparison {weights}">' in page
    assert page.count("<script") == 1 and "<b>device" not in page and NASTY not in page and "映画" in page
    assert comparison.disputed and page.count('<div class="poster card">') == len(comparison.disputed)
    for poster, shown in zip(comparison.disputed, comparison.numbers["posters"], strict=True):
        assert len({example.id for example in poster.said}) == 1
        assert set(shown["named"]) == set(NAMES) and len({tuple(names) for names in shown["named"].values()}) > 1


def test_the_folder_has_all_files_and_is_replaced(comparison: Comparison, tmp_path: Path):
    out = tmp_path / "new" / "out"
    page = write_comparison(out, comparison)
    write_comparison(out, comparison)
    assert page == out / "index.html" and {path.name for path in out.iterdir()} == {
        "index.html", "compare.json", "compare.csv",
    }  # fmt: skip
    assert json.loads((out / "compare.json").read_text())["genres"] == GENRES
    with open(out / "compare.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(NAMES) * len(PLACES["report"]) and rows[0]["metric"] == "mAP" and rows[0]["words"] == ""


@pytest.mark.parametrize("name", ["notes.txt", "index.html", "compare.json"])
def test_a_foreign_folder_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    with fails("path-exists", tmp_path, name):
        check_folder(tmp_path)
    with fails("path-exists", "is a file"):
        check_folder(tmp_path / name)
