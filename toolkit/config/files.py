"""Check configuration files (YAML or JSON), and convert keys of earlier versions with `as_today`.

jsonargparse reads the files. It accepts a repeated key without a warning and keeps the last value. This module
therefore refuses repeated keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from shards.errors import UserError, one_line
from toolkit.config.loss_registry import LOSSES

#: Limits of a file, far above the needs of any real file. Values are counted after aliases are expanded.
MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 20, 10_000

#: Options of losses that were keys of section ``loss`` in earlier versions. Now they are keys of loss.options.
FLAT_LOSS_OPTIONS = ("pos_weight_cap", "focal_gamma", "gamma_pos", "gamma_neg", "clip")
#: Old key → new key.
RENAMED = {"decide.slack": "decide.max_micro_f_loss"}
#: Removed key → its former default, which is now always used.
CONSTANTS: dict[str, Any] = {
    "train.channels_last": True, "train.max_skipped": 10, "augment.mix_prob": 1.0, "augment.erase_area": [0.02, 0.33],
}  # fmt: skip


def as_today(config: Any, typed: Collection[str] = ()) -> dict[str, Any]:
    """Replace keys of earlier versions by the current keys in the nested mapping ``config``.

    Remove the keys in CONSTANTS. Return the removed keys whose values differ from CONSTANTS, as key → value.
    Remove options of losses that are not chosen. Give missing options of the chosen loss their defaults.

    typed: keys given on the command line. The old name of a typed key in ``config`` is ignored.
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
    """Raise UserError if a file is not valid YAML or repeats a key, or if a section in ``sections`` has no keys."""
    what = f"config file {path}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError("config-file", f"{what} has over {MAX_BYTES} bytes, the limit for a configuration")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("config-file", f"config file not found: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError("config-file", f"{what} is not valid YAML: {one_line(error)}") from None
    raw = check_text(text, what)
    if not isinstance(raw, dict):
        raise UserError("config-file", f"{what} contains no keys; see configs/ for examples with comments")
    for name, value in raw.items():
        if name == "config" and value is not None:
            raise UserError(
                "config-file", f"{what} has the key config, which names another file: put all keys into one file"
            )
        if name in sections and not isinstance(value, dict):
            given = "nothing" if value is None else type(value).__name__
            raise UserError(
                "config-file", f"{what}: {name} must contain keys, but contains {given}: add keys, or remove {name}"
            )


def check_text(text: str, what: str) -> Any:
    """Return the value of a YAML text. Raises UserError, which names ``what``, if the text is invalid or too large."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError("config-file", f"{what} has more than {MAX_DEPTH} levels of nesting, the limit")
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        if _values(node, {}) > MAX_VALUES:
            raise UserError(
                "config-file", f"{what} has over {MAX_VALUES} values after its aliases (*name) are expanded"
            )
        first: dict[str, int] = {}
        for key, line in _keys(node, ""):
            if key in first:
                raise UserError(
                    "config-file", f"{what} repeats {key}, in lines {first[key]} and {line}: remove one of them"
                )
            first[key] = line
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError("config-file", f"{what} is not valid YAML: {one_line(error)[:300]}") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node, with aliases expanded. A node that contains itself counts as more than MAX_VALUES."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # the recursion finds this value only if the node contains itself
        children: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [n for child in children for n in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(child, known) for child in flat)
    return known[id(node)]


def _keys(node: yaml.Node, within: str) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of each key. Key ``optim.lr`` means ``lr`` in section ``optim``."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
        if key.tag == "tag:yaml.org,2002:merge" or not name:
            continue
        line = key.start_mark.line + 1
        yield within + name, line
        yield from _keys(value, f"{within}{name}.")
