"""The ordered genres and their fingerprint."""

from __future__ import annotations

from random import Random

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.labels import MAX_GENRES, LabelSet, difference, merge_spellings, require_same
from shards.errors import UserError

names = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=8)


def test_genres_are_sorted_and_different() -> None:
    labels = LabelSet.from_samples([("War", "Drama"), (), ("Action", "War"), ["animé"]])
    assert labels.genres == ("Action", "Drama", "War", "animé")
    assert len(labels) == 4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names, st.data())
def test_columns_and_multi_hot(genres: list[str], data: st.DataObject) -> None:
    labels = LabelSet(tuple(genres))
    chosen = data.draw(st.lists(st.sampled_from(genres), unique=True) if genres else st.just([]))
    columns = labels.columns([*chosen, "a genre that is not there"])
    assert columns == sorted(columns) and {genres[c] for c in columns} == set(chosen)
    assert labels.multi_hot(columns) == [int(genre in chosen) for genre in genres]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names, names)
def test_fingerprints_differ_exactly_when_lists_do(left: list[str], right: list[str]) -> None:
    same = LabelSet(tuple(left)).fingerprint == LabelSet(tuple(right)).fingerprint
    assert same == (left == right)


def test_fingerprint_never_changes() -> None:
    # Checkpoints and shard sets of older versions carry it.
    assert LabelSet(("Action", "Comédie")).fingerprint == "ba438c5f88508d76"


def test_differences_are_named() -> None:
    a, b = LabelSet(("Action", "Drama")), LabelSet(("Drama", "Action"))
    require_same("model", a, "shards", LabelSet(("Action", "Drama")))
    with pytest.raises(UserError, match="the first difference at column 0: 'Action' in model, 'Drama' in shards"):
        require_same("model", a, "shards", b)
    with pytest.raises(UserError, match="only in model: 'Drama'; only in shards: 'War'"):
        require_same("model", a, "shards", LabelSet(("Action", "War")))
    many = LabelSet(tuple(f"g{i}" for i in range(9)))
    assert difference("a", many, "b", LabelSet(())) == "only in a: 'g0', 'g1', 'g2', 'g3', 'g4' and 4 more"


def test_more_genres_than_an_index_can_hold() -> None:
    LabelSet(tuple(map(str, range(MAX_GENRES))))
    with fails("table-column", "--genre-column"):
        LabelSet(tuple(map(str, range(MAX_GENRES + 1))))


# --- spellings


@pytest.mark.parametrize(
    ("spellings", "kept"),
    [
        (["Drama", "drama", "DRAMA", "Drama"], "Drama"),
        (["drama", "drama", "Drama"], "drama"),  # the most frequent
        (["drama", "Drama"], "Drama"),  # else the first in alphabetical order
        (["Drama\u200b", "Drama"], "Drama"),
        (["\ufeffDrama", "Dra\u00adma", "\u2060Drama"], "Drama"),
        (["Drama\ufe0f", "Dra\u034fma", "Drama\u3164", "\u2800Drama", "Drama"], "Drama"),
        (["Film\u00a0Noir", "Film  Noir", "film noir", " Film Noir\t"], "Film Noir"),
        (["FilmNoir", "Film Noir", "Film Noir"], "Film Noir"),
        (["Come\u0301die", "Comédie"], "Comédie"),
        (["\uff24\uff52\uff41\uff4d\uff41", "Drama", "Drama"], "Drama"),
        (["Sci\u2011Fi", "Sci-Fi", "Sci\u2013Fi", "Sci-Fi"], "Sci-Fi"),
        (["Children\u2019s", "Children's", "Children's"], "Children's"),
        (["STRASSE", "Straße", "Straße"], "Straße"),
    ],
)
def test_spellings_of_one_genre_are_merged_and_said(spellings: list[str], kept: str) -> None:
    samples = [(spelling, "War") for spelling in spellings]
    merged, lines = merge_spellings(samples)
    assert merged == [(kept, "War")] * len(spellings)
    assert len(lines) == 1 and lines[0].startswith(f"genre {kept!r} ({spellings.count(kept)} samples) is also")
    others = set(spellings) - {kept}
    assert lines[0].count("(") == 1 + len(others) and lines[0].endswith(": merged")
    assert "\u200b" not in lines[0] and "\u00a0" not in lines[0]


@pytest.mark.parametrize(
    "genres", [("Sci-Fi", "SciFi"), ("Drama", "Dramas"), ("Comédie", "Comedie"), ("R&B", "RB"), ("A-B", "A_B")]
)
def test_other_genres_stay_apart(genres: tuple[str, ...]) -> None:
    assert merge_spellings([genres]) == ([genres], [])


def test_letters_that_are_joined_stay_joined() -> None:
    joined = "\u0645\u06cc\u200c\u062e"
    assert merge_spellings([(joined,)]) == ([(joined,)], [])
    assert merge_spellings([(f"\u200d{joined}",)])[0] == [(joined,)]


def test_a_sample_with_two_spellings_has_the_genre_once() -> None:
    assert merge_spellings([("Drama", "War", "drama"), ("Drama",)])[0] == [("Drama", "War"), ("Drama",)]


def test_known_labels_are_kept_as_they_are() -> None:
    samples = [("drama", "WAR"), ("drama", "Musical"), ("musical",)]
    merged, lines = merge_spellings(samples, known=("DRAMA", "War ", "Western"))
    assert merged == [("DRAMA", "War "), ("DRAMA", "Musical"), ("Musical",)]
    assert len(lines) == 3 and "genre 'DRAMA' (0 samples) is also written 'drama' (2): merged" in lines
    both = [("Drama",), ("drama",), ("DRAMA",)]
    assert merge_spellings(both, known=("Drama", "drama")) == (both, [])  # which of them would be a guess


spelt = st.lists(st.lists(st.sampled_from(["War", "war", "WAR ", "Drama", "dra\u200bma", "x"])).map(tuple), max_size=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(spelt, st.randoms(use_true_random=False))
def test_the_order_of_samples_plays_no_part_and_twice_is_once(samples: list, random: Random) -> None:
    merged, lines = merge_spellings(samples)
    order = list(range(len(samples)))
    random.shuffle(order)
    again, same = merge_spellings([samples[at] for at in order])
    assert [again[order.index(at)] for at in range(len(samples))] == merged and same == lines
    assert merge_spellings(merged) == (merged, [])
