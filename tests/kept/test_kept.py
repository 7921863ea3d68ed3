"""What earlier versions left on disks is read to the same end: forty commands on it come to what they came to then."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from commands import COMMANDS, HERE, defaults_of, results, unpack

from toolkit.config.files import as_today
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.decisions.decisions import Decisions

#: How far numbers may be from one another: another processor rounds in another way.
CLOSE = {"rel_tol": 2e-3, "abs_tol": 2e-4}
#: Columns of how fast it went, and keys of when.
SPEED = ("images_per_s", "data_wait", "decode_cores", "copy", "seconds", "made")
#: Fingerprints of decisions that are fitted when the command runs. They hold for the rounding of one processor; the
#: numbers themselves are compared as all numbers are.
FITTED = ("/files/killed.json/decisions", "/files/ensemble/model/labels.json/decisions")
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text())


class Found(dict[str, dict[str, Any]]):
    """What the commands come to now."""

    def __init__(self, make: Callable[[bool], dict[str, dict[str, Any]]]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> dict[str, Any]:
        self.update(self.make(COMMANDS[name].long))
        return self[name]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All of those that take long, or of those that do not, are run where the first of them is asked for."""

    def make(long: bool) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("kept")
        unpack(folder)
        return dict(results(folder, long))

    return Found(make)


def test_nothing_was_left_out():
    assert EXPECTED.keys() == COMMANDS.keys() and len(COMMANDS) == 40


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * command.long) for name, command in COMMANDS.items()]
)
def test_a_command_comes_to_what_it_came_to(found: Found, name: str):
    then = with_keys_of_today(EXPECTED[name], found[name])
    if then["options"]:  # what was no option then has its default
        usual = defaults_of(COMMANDS[name].words.split())
        added = (found[name]["options"] or {}).keys() - then["options"].keys()
        then["options"] |= {key: usual[key] for key in added & usual.keys()}
    differences = list(differing("", then, found[name]))
    assert not differences, differences[:5]
    for path, content in (found[name].get("files") or {}).items():
        if path.endswith("labels.json") and "decisions" in content:  # also where it is not the recorded one (FITTED)
            own = Decisions.from_dict(content, len(content["genres"]), path)
            assert own.fingerprint == content["decisions"], path


def with_keys_of_today(result: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was recorded, with its training's keys under today's names; what was no key or option has its default."""
    result = copy.deepcopy(result)
    if isinstance(result["options"], dict):
        result["options"] |= {
            key: None for key, value in now["options"].items() if value is None and key not in result["options"]
        }
        if result["options"].get("compile") is False:  # its default was False, and is now a measurement
            result["options"]["compile"] = None
    if "config" in (result["options"] or {}) and isinstance(config := result["options"]["config"], dict):
        assert as_today(config) == {}
        for section, values in config_dict(Config()).items():
            config[section] = values | config.get(section, {})
    return result


def differing(where: str, then: Any, now: Any) -> Iterator[str]:
    """Where two results differ, and how."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() | now.keys():
            if key not in SPEED:
                yield from differing(f"{where}/{key}", then.get(key, "absent"), now.get(key, "absent"))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from differing(f"{where}/{number}", one, other)
    elif where in FITTED and FINGERPRINT.fullmatch(then) and FINGERPRINT.fullmatch(now):
        return
    elif not same(then, now):
        yield f"{where}: {then!r} → {now!r}"


def same(then: Any, now: Any) -> bool:
    """Numbers are close, also those in a text whose words are the same."""
    if isinstance(then, str) and isinstance(now, str):
        numbers = zip(NUMBER.findall(then), NUMBER.findall(now), strict=False)
        return NUMBER.sub("#", then) == NUMBER.sub("#", now) and all(same(float(a), float(b)) for a, b in numbers)
    if isinstance(then, float) and isinstance(now, (int, float)):
        return math.isclose(then, now, **CLOSE) or (math.isnan(then) and math.isnan(now))
    return bool(then == now)
