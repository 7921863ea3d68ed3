"""The ordered genres: one list, one fingerprint, shared by shards, checkpoints and models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from shards.errors import UserError
from shards.files import fingerprint

MAX_GENRES = 32_767  # the index holds columns as int16


@dataclass(frozen=True)
class LabelSet:
    """Genres in the order of the multi-hot vector's columns."""

    genres: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.genres) > MAX_GENRES:
            raise UserError(
                f"{len(self.genres)} different genres are over the limit of {MAX_GENRES}; "
                f"is --genre-column the right column?"
            )

    @classmethod
    def from_samples(cls, genre_lists: Iterable[Sequence[str]]) -> LabelSet:
        """All genres that occur, in alphabetical order (as scikit-learn's MultiLabelBinarizer has them)."""
        return cls(tuple(sorted({genre for genres in genre_lists for genre in genres})))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any genre or with their order."""
        return fingerprint(list(self.genres))[:16]

    @cached_property
    def index(self) -> dict[str, int]:
        """Genre to column."""
        return {genre: column for column, genre in enumerate(self.genres)}

    def __len__(self) -> int:
        return len(self.genres)

    def columns(self, genres: Iterable[str]) -> list[int]:
        """Sorted columns of the genres that this set knows; others are left out."""
        return sorted(self.index[genre] for genre in genres if genre in self.index)

    def multi_hot(self, columns: Iterable[int]) -> list[int]:
        """A list of 0 and 1, one per genre."""
        row = [0] * len(self.genres)
        for column in columns:
            row[column] = 1
        return row


def difference(left_name: str, left: LabelSet, right_name: str, right: LabelSet) -> str:
    """What differs between two label sets, in a few words."""
    only_left = [g for g in left.genres if g not in right.index]
    only_right = [g for g in right.genres if g not in left.index]
    parts = []
    if only_left:
        parts.append(f"only in {left_name}: {_some(only_left)}")
    if only_right:
        parts.append(f"only in {right_name}: {_some(only_right)}")
    if not parts:
        first = next(i for i, (a, b) in enumerate(zip(left.genres, right.genres, strict=True)) if a != b)
        parts.append(
            f"same genres in another order, first at column {first}: "
            f"{left.genres[first]!r} in {left_name}, {right.genres[first]!r} in {right_name}"
        )
    return "; ".join(parts)


def require_same(left_name: str, left: LabelSet, right_name: str, right: LabelSet) -> None:
    """Refuse to go on with two different label sets: probabilities would be read under wrong names."""
    if left.fingerprint != right.fingerprint:
        raise UserError(
            f"labels differ: {left_name} has {len(left)} genres ({left.fingerprint}), {right_name} has "
            f"{len(right)} ({right.fingerprint}); {difference(left_name, left, right_name, right)}"
        )


def _some(genres: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(repr(g) for g in genres[:limit])
    return shown + (f" and {len(genres) - limit} more" if len(genres) > limit else "")
