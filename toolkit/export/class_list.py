"""Read the names of the classes of a model that another program trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.dataset.labels import Genres, LabelSet, genres_problem, read_labels
from shards.errors import UserError, one_line
from shards.schema import check_as
from shards.storage.files import small_bytes

REMEDY = "write one name per line, in the order of the model's outputs"


def read_classes(path: Path) -> LabelSet:
    """Return the names in a text file with one name per line, or in a .json file (`read_labels`). Raises UserError."""
    if not path.is_file():
        raise UserError("path-missing", f"list of classes not found: {path}")
    if path.suffix.lower() == ".json":
        return read_labels(path)
    try:
        lines = small_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError("labels-invalid", f"{path} is not a text in UTF-8: {one_line(error)}; {REMEDY}") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise UserError("labels-invalid", f"{path}: line {names.index('') + 1} is empty; {REMEDY}")
    return labels_of(names, path)


def labels_of(names: Any, where: object) -> LabelSet:
    """Return a list of names, or a dict of output number → name, as labels. Raises UserError if it is not valid."""
    if isinstance(names, dict):
        order = [str(number) for number in range(len(names))]
        if missing := [number for number in order if number not in names]:
            raise UserError("labels-invalid", f"{where} has no name for output {missing[0]}; pass --classes FILE")
        names = [names[number] for number in order]
    good = check_as(names, Genres, where, "list of classes", REMEDY, "labels-invalid")
    if not good:
        raise UserError("labels-invalid", f"{where} has no names of classes; {REMEDY}")
    if problem := genres_problem(good):
        twice = next((name for name in good if good.count(name) > 1), None) if len(good) < 10_000 else None
        shown = f" ({twice[:100]!r})" if twice is not None else ""
        raise UserError("labels-invalid", f"{where} is not a valid list of classes: {problem}{shown}; {REMEDY}")
    return LabelSet(tuple(good))
