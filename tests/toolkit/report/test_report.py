"""The numbers of a report: scikit-learn is the referee, and each sentence follows from its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_tools import calibration_summary
from report_tools import GENRES, SAMPLES, decisions, inputs, said, simulate, trained_on
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    fbeta_score,
    log_loss,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
    roc_auc_score,
)

from toolkit.metrics.helpers import sigmoid
from toolkit.metrics.judgement import UNSEEN
from toolkit.report.build import Report, build_report, calibration, facts
from toolkit.report.cooccurrence import Substitutions, cooccurrence, pairs
from toolkit.report.examples import POSTERS_PER_GROUP, choose_groups, logit_difference
from toolkit.report.inputs import FINGERPRINT, ModelOutputs
from toolkit.report.label_errors import have_cleanlab
from toolkit.report.per_label import notes as build_notes
from toolkit.report.summary import comparisons, headline, resampled

ROUNDS = 1000  # fewer rounds cannot show a p-value below 5% after the correction for a table


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(inputs(), label_errors=have_cleanlab(), rounds=ROUNDS)


def test_the_headline_is_scikit_learns(report: Report):
    targets, logits = simulate()
    probabilities, named = decisions().probabilities(logits), decisions().named(logits)
    shown = {row["metric"]: row for row in report.numbers["headline"]}
    some = targets.any(axis=0)
    assert not some.all()  # the last genre has no positive and counts in no macro mean
    truth, score, said_so = targets[:, some], probabilities[:, some], named[:, some]
    expected = {
        "mAP": average_precision_score(truth, score),
        "roc_auc": roc_auc_score(truth, score),
        "loss": np.mean([log_loss(targets[:, g], probabilities[:, g], labels=[0, 1]) for g in range(5)]),
        "micro_f1": f1_score(targets, named, average="micro", zero_division=0),
        "macro_f1": f1_score(truth, said_so, average="macro", zero_division=0),
        "micro_f0.5": fbeta_score(targets, named, beta=0.5, average="micro", zero_division=0),
        "macro_f0.5": fbeta_score(truth, said_so, beta=0.5, average="macro", zero_division=0),
        "micro_precision": precision_score(targets, named, average="micro", zero_division=0),
        "micro_recall": recall_score(targets, named, average="micro", zero_division=0),
        "macro_precision": precision_score(truth, said_so, average="macro", zero_division=0),
        "macro_recall": recall_score(truth, said_so, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(targets, named),
        "predicted_per_sample": named.sum() / SAMPLES,
        "ece": calibration_summary(targets, probabilities)["ece"],
    }
    assert set(expected) | {"ece_macro"} == set(shown)
    for metric, value in expected.items():
        assert shown[metric]["value"] == pytest.approx(value, abs=1e-9), metric
        assert shown[metric]["low"] <= shown[metric]["value"] <= shown[metric]["high"]
    assert shown["mAP"]["low"] < shown["mAP"]["high"]


def test_the_table_of_genres_is_scikit_learns(report: Report):
    targets, logits = simulate()
    probabilities, named = decisions().probabilities(logits), decisions().named(logits)
    precision, recall, f1, support = precision_recall_fscore_support(targets, named, zero_division=0)
    for column, row in enumerate(report.numbers["per_genre"]):
        assert row["genre"] == GENRES[column] and row["support"] == support[column]
        assert row["threshold"] == decisions().thresholds[column]
        if support[column]:
            ap = average_precision_score(targets[:, column], probabilities[:, column])
            assert row["ap"] == pytest.approx(ap) and row["ap_low"] < ap < row["ap_high"]
            assert row["precision"] == pytest.approx(precision[column])
            assert row["recall"] == pytest.approx(recall[column])
            assert row["f1"] == pytest.approx(f1[column])
        else:
            assert row["ap"] is row["ap_low"] is row["recall"] is row["f1"] is None
        for key, values in (("ece", probabilities), ("ece_before", sigmoid(logits))):
            ece = calibration_summary(targets[:, [column]], values[:, [column]])["ece"]
            assert row[key] == pytest.approx(ece), key
        assert row["ece"] != row["ece_before"]


def test_every_difference_is_of_the_figures_beside_it(report: Report):
    targets, logits = simulate()
    compared = {row["kind"]: row["rows"] for row in report.numbers["comparisons"]}
    assert set(compared) == {"baselines", "single", "run"}
    for row in [row for rows in compared.values() for row in rows]:
        assert row["difference"] == pytest.approx(row["mine"] - row["theirs"])
        assert row["low"] <= row["difference"] <= row["high"]
        seen = (row["low"] > 0 or row["high"] < 0) and row["p_holm"] < 0.05
        assert (row["words"] != UNSEEN) == seen and row["p"] <= row["p_holm"] <= 1
    single = decisions().probabilities(logits) >= 0.45
    by_metric = {row["metric"]: row for row in compared["single"]}
    assert by_metric["micro_f1"]["theirs"] == pytest.approx(f1_score(targets, single, average="micro"))
    baselines = {row["metric"]: row for row in compared["baselines"]}
    assert baselines["mAP"]["theirs"] == pytest.approx(targets[:, :4].mean())  # AP of constants is the prevalence
    tops = []
    for k in (1, 2, 3):
        named = np.zeros_like(targets)
        named[:, [1, 0, 2][:k]] = True  # the commonest of training first
        tops.append(f1_score(targets, named, average="micro"))
    assert baselines["micro_f1"]["theirs"] == pytest.approx(max(tops))
    assert baselines["micro_f1"]["beside"] == f"always top-{1 + int(np.argmax(tops))}"


def test_the_verdict_names_its_figures(report: Report):
    sentence = report.numbers["verdict"]["sentence"]
    shown = {row["metric"]: row["value"] for row in report.numbers["headline"]}
    beside = {row["metric"]: row for row in report.numbers["comparisons"][0]["rows"]}
    times = shown["mAP"] / beside["mAP"]["theirs"]
    assert f"mAP {shown['mAP']:.3f} on {SAMPLES} test posters, {times:.1f} times" in sentence
    for metric in ("micro_f1", "macro_f1"):
        words = beside[metric]["words"]
        verb = "has" if words == UNSEEN else "is"
        assert f"({shown[metric]:.3f} against {beside[metric]['theirs']:.3f}) {verb} {words}" in sentence
    assert any("run 2 <u>" in detail for detail in report.numbers["verdict"]["details"])


def test_the_same_run_beside_itself_differs_in_nothing():
    same = inputs()
    same = replace(same, other=said(simulate()[1], decisions(), "itself"))
    numbers = build_report(same, label_errors=False, rounds=20).numbers
    (rows,) = [c["rows"] for c in numbers["comparisons"] if c["kind"] == "run"]
    for row in rows:
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
        assert row["words"] == "no difference seen"


def test_the_worse_run_is_told(report: Report):
    (rows,) = [c["rows"] for c in report.numbers["comparisons"] if c["kind"] == "run"]
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["mAP"]["words"] == by_metric["loss"]["words"] == "better"
    assert by_metric["loss"]["difference"] < 0 < by_metric["mAP"]["difference"]
    words = {row["genre"]: row["ap"]["words"] for row in report.numbers["genre_comparison"]}
    assert words["Drama"] == "better" and words["War"] == "too few posters"


def test_calibration_before_and_after():
    given = inputs()
    targets, logits = simulate()
    found = calibration(given)
    plain = 1 / (1 + np.exp(-logits))
    assert found["before"]["ece"] == pytest.approx(calibration_summary(targets, plain)["ece"])
    after = calibration_summary(targets, decisions().probabilities(logits))["ece"]
    assert found["after"]["ece"] == pytest.approx(after) and after != found["before"]["ece"]


def test_the_sweep_is_the_metric_at_each_threshold(report: Report):
    targets, logits = simulate()
    swept = report.numbers["threshold_sweep"]
    for place in (10, 60, 100):
        named = decisions().probabilities(logits) >= swept["threshold"][place]
        expected = f1_score(targets[:, :4], named[:, :4], average="macro", zero_division=0)
        assert swept["macro_f1"][place] == pytest.approx(expected)
    assert swept["micro_precision"][-1] is None or swept["micro_recall"][-1] > 0


def test_near_duplicates_are_one_poster_to_the_intervals():
    once = inputs()
    twice = np.tile(np.arange(len(once.targets)), 2)

    def double(one: ModelOutputs) -> ModelOutputs:
        return replace(one, logits=one.logits[twice])

    assert once.other is not None
    doubled = replace(
        once,
        targets=once.targets[twice],
        ids=[once.ids[row] for row in twice],
        model=double(once.model),
        other=double(once.other),
        units=twice,
    )
    drawn = [resampled(given, ROUNDS) for given in (once, doubled)]
    rows = [headline(draws) for draws in drawn]
    compared = [comparisons(given, draws)[-1]["rows"] for given, draws in zip((once, doubled), drawn, strict=True)]
    for before, after in [*zip(*rows, strict=True), *zip(*compared, strict=True)]:
        assert after["low"] == pytest.approx(before["low"]) and after["high"] == pytest.approx(before["high"])
    words = " ".join(build_notes(doubled, []))
    assert f"{len(twice)} posters are near-duplicates of other posters. They form {len(once.targets)} groups" in words
    assert "does not record near-duplicates" in " ".join(build_notes(once, []))
    known = replace(once, units=np.arange(len(once.targets)))
    assert not any("near-duplicates" in note for note in build_notes(known, []))


def test_notes_say_what_limits_the_figures(report: Report):
    notes = " ".join(report.numbers["notes"])
    assert "No poster of this split has the genre War." in notes
    on_val = build_report(inputs(split="val", other=False), label_errors=False, rounds=5).numbers
    assert any("optimistic" in note for note in on_val["notes"])
    assert not any("optimistic" in note for note in report.numbers["notes"])


def test_a_model_of_another_shard_set_may_have_seen_these_posters(report: Report):
    def notes(mine: str | None, theirs: str | None) -> list[str]:
        given = inputs()
        assert given.other is not None
        moved = replace(given, model=trained_on(given.model, mine), other=trained_on(given.other, theirs))
        return [note for note in build_notes(moved, []) if "another shard set" in note]

    here = inputs().shard_set[FINGERPRINT]
    assert notes(here, here) == [] == notes(None, None)  # an unknown set is no other one
    (note,) = notes(here, "f" * 16)
    assert note.startswith("run 2 <u> was trained on another shard set. If it was trained on posters")
    assert note.endswith("of this test split, the metrics of run 2 <u> are too high and the comparison is not fair.")
    (note,) = notes("f" * 16, here)
    assert note.startswith("run was trained on another") and note.endswith("too high.")
    assert len(notes("e" * 16, "f" * 16)) == 2
    assert not any("another shard set" in note for note in report.numbers["notes"])


def test_facts_tell_which_weights_were_saved():
    given = inputs()
    assert given.other is not None
    given = replace(given, model=trained_on(given.model, "f" * 16, weights="ema"))
    told = facts(given)
    assert (told["saved"], told["trained_elsewhere"]) == ("ema", True)
    assert (told["other"]["saved"], told["other"]["trained_elsewhere"]) == (None, False)


# --- genres that come together, and what is said instead --------------------------------------------------


def test_together_by_hand():
    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    shares = cooccurrence(targets)
    assert shares[0].tolist() == [1, 2 / 3, 0] and shares[1].tolist() == [2 / 3, 1, 0]
    assert np.isnan(shares[2]).all()
    named = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    (row,) = pairs(targets, named, ["A", "B", "C"])
    assert (row["first"], row["second"], row["count"], row["named"], row["right"]) == ("A", "B", 2, 2, 1)
    assert row["lift"] == pytest.approx(2 / (3 * 3 / 4))


def test_said_instead_by_hand():
    # 20 posters of A of which 10 are missed, B being named wrongly on 6 of these; 20 others, B wrongly on 3 of them.
    targets = np.zeros((40, 3), dtype=bool)
    targets[:20, 0] = True
    targets[20:, 2] = True
    named = targets.copy()
    named[:10, 0] = False
    named[:6, 1] = named[20:23, 1] = True
    instead = Substitutions(targets, named)
    assert instead.missed.tolist() == [10, 0, 0]
    assert instead.count[0, 1] == 6 and instead.could[0, 1] == 10 and instead.usual[1] == 9 / 40
    assert instead.times_usual[0, 1] == pytest.approx(0.6 / (9 / 40))
    assert np.isnan(instead.times_usual[0, 0]) and np.isnan(instead.times_usual[1]).all()
    (row,) = instead.rows(["A", "B", "C"])
    assert row["missed"] == "A" and row["instead"] == "B" and row["share"] == 0.6


def test_chance_is_not_said_instead():
    targets, _ = simulate()
    quiet = Substitutions(targets, targets)
    assert not quiet.rows(GENRES) and np.isnan(quiet.times_usual).all()


# --- posters ----------------------------------------------------------------------------------------------


def test_groups_hold_the_right_posters():
    given = inputs()
    targets, named = given.targets, given.model.named
    groups = {group.key: group for group in choose_groups(given)}
    exact = (targets == named).all(axis=1)
    assert groups["best"].examples and all(exact[e.sample] for e in groups["best"].examples)
    assert groups["worst"].examples and not any(exact[e.sample] for e in groups["worst"].examples)
    for group in groups.values():
        samples = [example.sample for example in group.examples]
        assert len(set(samples)) == len(samples) <= POSTERS_PER_GROUP
    for key, verdict in (("wrong", "wrong"), ("missed", "missed")):
        moved = logit_difference(given.model.probabilities, given.train_prevalence) * (1 if key == "wrong" else -1)
        errors = named & ~targets if key == "wrong" else targets & ~named
        most = np.where(errors, moved, -np.inf).max(axis=1)
        assert [e.sample for e in groups[key].examples] == np.argsort(-most, kind="stable")[:POSTERS_PER_GROUP].tolist()
        for example in groups[key].examples:
            assert [line.verdict for line in example.lines if line.is_reason] == [verdict]


def test_lines_under_a_poster():
    given = inputs()
    for group in choose_groups(given):
        for example in group.examples:
            row = example.sample
            assert example.true == [GENRES[c] for c in np.flatnonzero(given.targets[row])]
            shown = {line.genre: line.verdict for line in example.lines}
            for column, genre in enumerate(GENRES):
                state = given.model.named[row, column], given.targets[row, column]
                expected = {(1, 1): "right", (1, 0): "wrong", (0, 1): "missed"}.get(state)
                assert shown.get(genre) == expected
            probabilities = [line.probability for line in example.lines]
            assert probabilities == sorted(probabilities, reverse=True)


def test_evidence_is_against_what_is_usual():
    found = logit_difference(np.array([[0.3, 0.6]]), np.array([0.01, 0.8]))
    assert found[0, 0] > 3 and found[0, 1] < 0


@pytest.mark.skipif(not have_cleanlab(), reason="cleanlab is not installed")
def test_label_errors_are_listed_with_their_genres(report: Report):
    rows = report.numbers["label_errors"]["rows"]
    assert rows and report.errors is not None and report.errors.examples
    for row in rows:
        assert row["given"] == (row["genre"] in row["genres"])
    first = report.errors.examples[0]
    assert first.id == rows[0]["id"]
    assert {line.genre for line in first.lines if line.is_reason} == {r["genre"] for r in rows if r["id"] == first.id}
