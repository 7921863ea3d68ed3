"""The ordered genres and their fingerprint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.labels import MAX_GENRES, LabelSet, difference, require_same

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
    with pytest.raises(
        UserError, match="another order, first at column 0: 'Action' in model, 'Drama' in shards"
    ):
        require_same("model", a, "shards", b)
    with pytest.raises(UserError, match="only in model: 'Drama'; only in shards: 'War'"):
        require_same("model", a, "shards", LabelSet(("Action", "War")))
    many = LabelSet(tuple(f"g{i}" for i in range(9)))
    assert difference("a", many, "b", LabelSet(())) == "only in a: 'g0', 'g1', 'g2', 'g3', 'g4' and 4 more"


def test_more_genres_than_an_index_can_hold() -> None:
    LabelSet(tuple(map(str, range(MAX_GENRES))))
    with pytest.raises(UserError, match="--genre-column"):
        LabelSet(tuple(map(str, range(MAX_GENRES + 1))))
