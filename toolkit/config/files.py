"""YAML (or JSON) of options, looked at for what loaders pass over: repeated keys, nesting and aliases without end.

jsonargparse does the reading; of a key that comes twice it would keep the last, in silence. Keys of earlier versions,
which configs and checkpoints on disks hold, become today's here (as_today).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from shards.errors import UserError, one_line
from toolkit.config.losses import LOSSES

#: Far over what a configuration has: bytes, depth, and values once aliases are written out.
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 20, 10_000

#: Keys of section loss in earlier versions, with the options of all losses. Today loss.options has those of one.
FLAT_LOSS_OPTIONS = ("pos_weight_cap", "focal_gamma", "gamma_pos", "gamma_neg", "clip")
#: Keys of earlier versions that have another name today.
RENAMED = {"decide.slack": "decide.max_micro_f_loss"}
#: Keys of earlier versions that are constants today, and their values, which were the defaults.
CONSTANTS: dict[str, Any] = {
    "train.channels_last": True, "train.max_skipped": 10, "augment.mix_prob": 1.0, "augment.erase_area": [0.02, 0.33],
}  # fmt: skip


def as_today(config: Any, typed: Collection[str] = ()) -> dict[str, Any]:
    """Bring the keys of an earlier version in ``config``, a nested mapping, under today's names, in place.

    Returns the keys of CONSTANTS that had other values, with these. An option of another loss than the chosen one goes,
    as it had no effect. Options of the chosen loss that are not given get their defaults.

    typed: keys of the command line, whose values win over those of a file's old key.
    """
    other = {}
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        if name in (keys := config.get(section) or {}):
            value = keys.pop(name)
            if new not in typed:
                keys[new.partition(".")[2]] = value
    for key, constant in CONSTANTS.items():
        section, _, name = key.partition(".")
        value = (config.get(section) or {}).pop(name, constant)
        if value != constant and list(value if isinstance(value, tuple) else [value]) != constant:
            other[key] = value
    train = config.get("train") or {}
    if train.pop("tensorboard", True) is False:
        train["trackers"] = {
            name: given for name, given in (train.get("trackers") or {}).items() if name != "tensorboard"
        }
    if other.get("augment.mix_prob") == 0:
        config["augment"]["mixup"] = config["augment"]["cutmix"] = 0.0
    loss = config.get("loss") or {}
    flat = {name: loss.pop(name) for name in FLAT_LOSS_OPTIONS if name in loss}
    chosen, given = LOSSES.get(str(loss.get("name", "bce"))), loss.get("options", {})
    if flat or isinstance(given, dict):
        usual = vars(chosen.options()) if chosen else {}
        loss["options"] = {name: flat.get(name, usual[name]) for name in usual}
        loss["options"] |= given if isinstance(given, dict) else {}
    return other


def check_file(path: Path, sections: set[str]) -> None:
    """Raise UserError for a file that is no YAML of keys, or that gives a key or one of the ``sections`` twice."""
    what = f"config file {path}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError("config-file", f"{what} has over {MAX_BYTES} bytes: no configuration is that long")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("config-file", f"config file not found: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError("config-file", f"{what} is no YAML: {one_line(error)}") from None
    raw = check_text(text, what)
    if not isinstance(raw, dict):
        raise UserError("config-file", f"{what} holds no keys; see configs/ for annotated ones")
    for name, value in raw.items():
        if name == "config" and value is not None:
            raise UserError("config-file", f"{what} names another one by the key config: give one file, with all keys")
        if name in sections and not isinstance(value, dict):
            given = "nothing" if value is None else type(value).__name__
            raise UserError(
                "config-file", f"{what}: {name} must hold keys, and holds {given}: give it some, or leave it out"
            )


def check_text(text: str, what: str) -> Any:
    """The value of a YAML text. Raises UserError that names ``what`` and the key that comes twice, with its lines."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError("config-file", f"{what} is nested over {MAX_DEPTH} deep: no configuration is")
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        if _values(node, {}) > MAX_VALUES:
            raise UserError(
                "config-file", f"{what} has over {MAX_VALUES} values once its aliases (*name) are written out"
            )
        first: dict[str, int] = {}
        for key, line in _keys(node, ""):
            if key in first:
                raise UserError(
                    "config-file", f"{what} repeats {key}, in lines {first[key]} and {line}: leave one of them"
                )
            first[key] = line
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError("config-file", f"{what} is no YAML: {one_line(error)[:300]}") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node has with all aliases written out; one within itself has too many."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # while under way
        children: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [n for child in children for n in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(child, known) for child in flat)
    return known[id(node)]


def _keys(node: yaml.Node, within: str) -> Iterator[tuple[str, int]]:
    """(dotted key, line from 1) of all keys; ``optim.lr`` beside ``optim`` is the section once more."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
        if key.tag == "tag:yaml.org,2002:merge" or not name:
            continue
        line = key.start_mark.line + 1
        yield within + name, line
        yield from _keys(value, f"{within}{name}.")
