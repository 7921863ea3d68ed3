"""Choose the genres of tars that another tool wrote: from a JSON field, or from the ``.cls`` members.

All samples of a set must have the same form of target. Numbers become the genres "0", "1", …, in this order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shards.build.index.join import require_genres
from shards.build.index.read import Contents
from shards.build.index.targets import CLASS_FIELD, Target, columns_of, flag_names
from shards.dataset.labels import MAX_GENRES, LabelSet, merge_spellings
from shards.errors import UserError, printable, some
from shards.tables.genre_checks import doubt_about_classes, warn_of_words

log = logging.getLogger(__name__)

GENRES = "genres"
"""Default name of the JSON field with the genres of a sample."""
FORMS = {
    "names": "names of genres",
    "class": "a class number",
    "binary": "a list of 0 and 1",
    "numbers": "a list of numbers",
    "flags": "fields of 0 and 1",
}
_REMEDY = "choose another field with --genre-field, or give a table with --metadata"


@dataclass(frozen=True)
class Choice:
    """Genres that were chosen for a set."""

    labels: LabelSet | None = None
    """Genres in the order of their numbers. None if the genres have names, whose order is alphabetical."""
    source: dict[str, Any] = field(default_factory=lambda: {"genre_field": None})
    """Where the genres are, for ``source`` in the manifest: ``genre_field``, ``genre_form`` and ``classes``."""


def choose_genres(place: str, chosen: str | None, refuse_spellings: bool, found: Sequence[Contents]) -> Choice:
    """Fill ``Contents.genres`` from the targets in the JSONs or in the ``.cls`` members. Reject samples without genres.

    place: the folder of the tars, for messages. chosen: --genre-field. None chooses the ``.cls`` members, or the field
    ``genres`` if there are no such members. Raises UserError if both have targets and ``chosen`` is None, or if the
    samples have different forms of targets.
    """
    name = chosen or GENRES
    from_members = _takes_members(place, chosen, found)
    if from_members:
        for contents in found:
            contents.targets = contents.classes
    where = f"{place}: the .{CLASS_FIELD} member" if from_members else f"{place}: the JSONs' field {name!r}"
    source: dict[str, Any] = {"genre_field": None if from_members else name}
    for contents in found:
        for (_, key), target in zip(contents.names(), contents.targets, strict=True):
            if target.form == "bad":
                contents.reject(key, *target.values)
        contents.keep([target.form != "bad" for target in contents.targets])
    form = _form_of_all(where, found)
    if form in ("", "names"):
        for contents in found:
            contents.genres = [target.values for target in contents.targets]
        _merge_spellings(where, refuse_spellings, found)
        require_genres(found)
        fields = next((contents.fields for contents in found if contents.fields), [])
        if not form and (fields or chosen):
            what = f"no JSON has genres in {name!r}; the fields are {some([repr(n[:60]) for n in fields]) or 'none'}"
            if chosen and any(contents.targets for contents in found):
                members = ", and no sample has a .cls member" if chosen == CLASS_FIELD else ""
                raise UserError("labels-invalid", f"{place}: {what}{members}; choose another with --genre-field")
            log.warning("%s", what)
        return Choice(None, source)
    labels = _numbered(where, form, flag_names(name), found)
    if form == "class":
        source["classes"] = True
    return Choice(labels, {**source, "genre_form": form})


def _takes_members(place: str, chosen: str | None, found: Sequence[Contents]) -> bool:
    """Return whether the ``.cls`` members have the targets. Raises UserError if the user must choose."""
    member = next(_samples_with(found, [contents.classes for contents in found]), None)
    if member is None or chosen not in (None, CLASS_FIELD):
        return False
    other = next(_samples_with(found, [contents.targets for contents in found]), None)
    if chosen is None and other is not None:
        two = f"sample {member[0]} has a .{CLASS_FIELD} member, and sample {other[0]} has {GENRES!r} in its JSON"
        remedy = f"choose with --genre-field {CLASS_FIELD} or --genre-field {GENRES}"
        raise UserError("labels-invalid", f"{place} has two kinds of genres: {two}; {remedy}")
    return True


def _samples_with(found: Sequence[Contents], targets: Sequence[Sequence[Target]]) -> Iterator[tuple[str, Target]]:
    """Yield each sample that has a target, as its key and tar in a text for messages."""
    for contents, own in zip(found, targets, strict=True):
        if any(target.form for target in own):
            for (_, key), target in zip(contents.names(), own, strict=True):
                if target.form:
                    yield f"{printable(key[:100])!r} of {contents.tar.name}", target


def _form_of_all(where: str, found: Sequence[Contents]) -> str:
    """Return the form of all targets. Raises UserError if the samples have different forms.

    The form is one of FORMS, or ``multi-hot`` or ``indices`` for lists of numbers. Empty if no sample has a target.
    """
    first: dict[str, str] = {}
    counts, lists = Counter[_List](), dict[_List, str]()
    for sample, target in _samples_with(found, [contents.targets for contents in found]):
        first.setdefault(target.form, sample)
        if target.length:
            repeats = len(set(columns_of(target, "indices"))) < target.length
            counts[kind := _List(target.form == "binary", target.length, repeats)] += 1
            lists.setdefault(kind, sample)
    if len(first) > 1 and set(first) != {"binary", "numbers"}:
        (one, sample), (two, other) = list(first.items())[:2]
        what = f"{where} has {FORMS[one]} in sample {sample}, but {FORMS[two]} in sample {other}"
        raise UserError("labels-invalid", f"{what}; {_REMEDY}")
    return _form_of_lists(where, counts, lists) if lists else next(iter(first), "")


class _List(NamedTuple):
    """Kind of a list of numbers."""

    binary: bool
    """Whether all numbers are 0 or 1."""
    length: int
    repeats: bool
    """Whether a number occurs twice. Numbers of labels seldom repeat, but each longer vector of 0 and 1 does."""

    def __str__(self) -> str:
        more = ", all 0 or 1" if self.binary else ", one of them twice" if self.repeats else ""
        return f"{self.length} numbers{more}"


def _form_of_lists(where: str, counts: Counter[_List], lists: Mapping[_List, str]) -> str:
    """Return ``multi-hot`` or ``indices``. Raises UserError if lists of numbers have no clear meaning.

    counts: number of samples with each kind of list. lists: the first of these samples.
    """
    kinds = [kind for kind, _ in counts.most_common()]
    usual = kinds[0]
    lengths, binary = {kind.length for kind in kinds}, all(kind.binary for kind in kinds)
    if lengths == {1} and binary:
        what = f"{where} has lists of one number, 0 or 1, which can be a class or a multi-hot vector"
        raise UserError("labels-invalid", f"{what} (sample {lists[usual]}); {_REMEDY}")
    if len(lengths) == 1 and binary:
        return "multi-hot"
    like_vectors = usual.binary and usual.repeats and 2 * counts[usual] >= counts.total()
    if like_vectors or (any(kind.repeats for kind in kinds) and (binary or len(lengths) == 1)):
        shown = some([f"{kind} (sample {lists[kind]})" for kind in kinds], 2, "; ")
        what = f"{where} has lists that are no multi-hot vectors of one length and no numbers of labels: {shown}"
        raise UserError("labels-invalid", f"{what}; {_REMEDY}")
    return "indices"


def _numbered(where: str, form: str, names: Sequence[str], found: Sequence[Contents]) -> LabelSet:
    """Fill ``Contents.genres`` with the names of numbered labels. Reject samples without a target."""
    targets = [target for contents in found for target in contents.targets if target.form]
    if form == "multi-hot":
        names = [str(n) for n in range(targets[0].length)]
    elif form != "flags":
        most = max(max(columns_of(target, form), default=0) for target in targets)
        if most >= MAX_GENRES:
            samples = _samples_with(found, [contents.targets for contents in found])
            sample = next(sample for sample, target in samples if most in columns_of(target, form))
            what = f"{where} has the class {most} (sample {sample}), over the limit of {MAX_GENRES - 1}"
            raise UserError("labels-invalid", f"{what}; {_REMEDY}")
        names = [str(n) for n in range(most + 1)]
    labels = LabelSet(tuple(names))
    counts = Counter(column for target in targets for column in columns_of(target, form))
    if absent := [name for column, name in enumerate(names) if not counts[column]]:
        log.warning("%s: %d of %d genres have no sample: %s", where, len(absent), len(names), some(absent))
    for contents in found:
        contents.genres = [tuple(names[column] for column in columns_of(t, form)) for t in contents.targets]
        for (_, key), target in zip(contents.names(), contents.targets, strict=True):
            if not target.form:
                contents.reject(key, "no genres")
        contents.keep([bool(target.form) for target in contents.targets])
    return labels


def _merge_spellings(where: str, refuse: bool, found: Sequence[Contents]) -> None:
    """Give each genre of the JSONs one spelling. Warn about texts that are not genres, and about a wrong field."""
    warn_of_words(where, sum((contents.words for contents in found), Counter[str]()), "rename it")
    merged, lines = merge_spellings([genres for contents in found for genres in contents.genres])
    if lines and refuse:
        why = f"{'; '.join(lines[:3])}; correct the JSONs, or pass --spellings merge"
        raise UserError("labels-invalid", f"{where} has several spellings of one genre: {why}")
    for line in lines:
        log.warning("%s", line)
    samples = [genres for genres in merged if genres]
    labels = Counter(label for genres in samples for label in genres)
    if doubt := doubt_about_classes(where, labels, samples):
        log.warning("%s; if this is the wrong field, choose another with --genre-field, or use --metadata", doubt)
    left = iter(merged)
    for contents in found:
        contents.genres = [next(left) for _ in contents.genres]
