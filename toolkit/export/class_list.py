"""Read the names of the classes of a model that another program trained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.dataset.labels import Genres, LabelSet, genres_problem
from shards.errors import UserError, one_line, printable
from shards.schema import check_as
from shards.storage.files import small_bytes

REMEDY = "write one name per line, in the order of the model's outputs"
#: Files with names of classes, in folders that have them.
LISTS = ("manifest.json", "labels.json", "config.json")
#: Endings of files that have other forms than one name per line.
TABLES = (".yaml", ".yml", ".csv", ".tsv")
#: Largest length of a name, as in `Genres`.
MAX_NAME = 4096
QUOTED, YAML_ITEM, YAML_KEY = re.compile(r"""(["'`]).*\1[,;]?"""), re.compile(r"-\s+\S.*"), re.compile(r"\w+:|---")
#: A number before or after a name. Group 1 or 6: the number. Group 2 or 5: the separator.
NUMBERED = re.compile(r"(\d+)(\s*[,;:|=]\s*|[.)]?\s+)(\S.*)|(.*?\S)(\s*[,;:|=]\s*|\s+)(\d+)")


def read_classes(path: Path) -> LabelSet:
    """Return the names in a text file with one name per line, or in a .json file. Raises UserError."""
    if path.is_dir():
        inside = next((name for name in LISTS if (path / name).is_file()), None)
        remedy = f"name a file, such as {path / inside}" if inside else f"name a text file; {REMEDY}"
        raise UserError("path-unreadable", f"--classes {path} is a folder: {remedy}")
    if not path.is_file():
        raise UserError("path-missing", f"list of classes not found: {path}")
    ending = path.suffix.lower()
    if ending in TABLES:
        raise UserError("labels-invalid", f"{path} is a {ending} file, which --classes does not take; {REMEDY}")
    try:
        text = small_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("labels-invalid", f"{path} is not a text in UTF-8: {one_line(error)}; {REMEDY}") from None
    names = _names_in_json(text, path) if ending == ".json" else _names_in_lines(text, path)
    labels = labels_of(names, path)
    folded: dict[str, str] = {}
    for name in labels.genres:
        if (other := folded.setdefault(" ".join(name.casefold().split()), name)) != name:
            what = f"{path} has two names that differ only in case or spaces: {other[:100]!r} and {name[:100]!r}"
            raise UserError("labels-invalid", f"{what}; rename one of them")
    return labels


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
    for number, name in enumerate(good):
        if _has_control(name):
            what = f"{where}: the name of output {number} has a control character: {name[:100]!a}"
            raise UserError("labels-invalid", f"{what}; remove it, and pass the names with --classes FILE")
    if problem := genres_problem(good):
        twice = next((name for name in good if good.count(name) > 1), None) if len(good) < 10_000 else None
        shown = f" ({twice[:100]!r})" if twice is not None else ""
        raise UserError("labels-invalid", f"{where} is not a valid list of classes: {problem}{shown}; {REMEDY}")
    return LabelSet(tuple(good))


def _names_in_json(text: str, path: Path) -> Any:
    """Return a list of names, or a dict of output number → name. Raises UserError for JSON of another form."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("an object has the same key twice")
        return made

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError("labels-invalid", f"{path} is not valid JSON: {one_line(error)}; repair it") from None
    if isinstance(raw, dict) and isinstance(raw.get("labels"), dict):  # the manifest of a shard set
        raw = raw["labels"]
    if isinstance(raw, dict):
        keys = ("genres", "label_names", "id2label")  # of labels.json, of timm's and of transformers' config.json
        raw = next((raw[key] for key in keys if isinstance(raw.get(key), (list, dict))), raw)
    if isinstance(raw, list):
        return raw
    if isinstance(raw, dict) and raw:
        if all(key.isdecimal() and isinstance(name, str) for key, name in raw.items()):
            return raw
        if all(type(number) is int for number in raw.values()) and not all(key.isdecimal() for key in raw):
            if len(names := {str(number): name for name, number in raw.items()}) == len(raw):
                return names
            raise UserError("labels-invalid", f"{path} gives two names the same number; number the outputs from 0")
    form = 'a JSON list such as ["Drama", "War"], or an object such as {"0": "Drama", "1": "War"}'
    raise UserError("labels-invalid", f"{path} has no list of genres or classes; write {form}")


def _names_in_lines(text: str, path: Path) -> list[str]:
    """Return the names in a text with one name per line. Raises UserError for a text of another form."""
    names = [line.strip(" \t") for line in text.replace("\r\n", "\n").split("\n")]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise UserError("labels-invalid", f"{path}: line {names.index('') + 1} is empty; {REMEDY}")
    if text.lstrip()[:1] in ("[", "{") and _is_json(text):
        raise UserError("labels-invalid", f"{path} contains JSON: rename it so that it ends with .json")
    keep = "if these are the names, write them as a JSON list in a .json file"
    if len(names) == 1 and re.search(r"[,;]", names[0]):
        what = f"{path} has one line with several names, {names[0][:100]!r}"
        raise UserError("labels-invalid", f"{what}; {REMEDY}; {keep}")
    found = _other_form(names)
    if found is not None:
        number, what = found
        shown = ascii(names[number][:100]) if _has_control(names[number]) else repr(names[number][:100])
        raise UserError("labels-invalid", f"{path}: line {number + 1} {what}: {shown}; {REMEDY}; {keep}")
    return [name.strip() for name in names]


def _other_form(names: Sequence[str]) -> tuple[int, str] | None:
    """Return the index of a line that is more than a name, and what it has. None if all lines are names."""
    if any(len(name) > MAX_NAME for name in names):  # `labels_of` refuses it; NUMBERED would take long
        return None
    for number, name in enumerate(names):
        if _has_control(name):
            return number, "has a tab" if "\t" in name else "has a control character"
        if QUOTED.fullmatch(name):
            return number, "has quotes"
    if names and (YAML_KEY.fullmatch(names[0]) or all(map(YAML_ITEM.fullmatch, names))):
        return 0, "is YAML"
    found = [match for match in map(NUMBERED.fullmatch, names) if match]
    if not found or len(found) < len(names):
        return None
    if all((match[2] or match[5]).strip() in tuple(",;:|=") for match in found):
        return 0, "has a number besides the name"
    numbers = [int(match[1] or match[6]) for match in found]
    rests = {match[3] or match[4] for match in found}  # "season 1", "season 2" are names
    first = min(numbers)
    if first < 2 and len(rests) == len(names) and sorted(numbers) == list(range(first, first + len(names))):
        return 0, "has a number besides the name"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_control(name: str) -> bool:
    return "\t" in name or "\n" in name or printable(name) != name
