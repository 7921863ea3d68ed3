"""Facts that must be equal in all processes of a launch. They are compared before any work starts.

Processes exchange gradients, logits and counters. If one process had another model, option, configuration or shard set,
the result would be a mixture, and no error would appear. So each process makes a record of what decides its results,
and the first process compares the records (launch.py has the channel). Devices, threads and paths may differ. Files are
compared by content. Other versions of libraries only cause a warning.

This module uses neither torch nor the network.
"""

from __future__ import annotations

import json
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from shards.errors import Code, one_line, printable, some
from shards.schema import parse_as
from shards.storage.files import fingerprint, sha256_file
from toolkit.config.schema import Config

if TYPE_CHECKING:
    from shards.dataset.manifest import Manifest
    from toolkit.model_folder.folder import ModelFolder

#: Key → (value as text, its source). The source is shown, but not compared.
Facts: TypeAlias = dict[str, tuple[str | None, str]]

#: Options with paths on one machine. Only "given or not" is compared; other facts compare the content at these paths.
PLACES = ("model", "shards", "directory", "image", "out", "report", "compare", "onnx")
#: The path where every process of a prediction writes. The processes of one machine must name the same folder.
OUTPUT_OPTION = "out"
#: Options and configuration keys that do not change results.
RANK_LOCAL_OPTIONS = ("threads", "cache", "data.workers", "data.prefetch")
#: Variables that change results, with their usual values. Each process rejects accelerate's variables: environment.py.
VARIABLES = {
    "NVIDIA_TF32_OVERRIDE": "",
    "ONEDNN_DEFAULT_FPMATH_MODE": "strict",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
}
#: Packages whose versions influence pixels, weights or results.
PACKAGES = ("poster-toolkit", "torch", "timm", "accelerate", "numpy", "pillow", "simplejpeg")

#: Maximum number of characters shown of a value.
WIDTH = 60
NOTHING = "nothing"
_PLAIN = re.compile(r"[\w.,:;+/@%()\[\]{}=<>*'-]([\w.,:;+/@%()\[\]{}=<>*'\" -]*[\w.,:;+/@%()\[\]{}=<>*'\"-])?")


class Record(msgspec.Struct, frozen=True):
    """Everything that decides the results of one process."""

    facts: Facts = {}
    versions: dict[str, str] = {}
    host: str = ""
    device: str = ""
    """Identity of its GPU; empty on a CPU."""
    processes: int = 0
    """Number of processes of the launch, as its launcher sets it; 0 if unknown."""
    problem: str = ""
    """Why the process cannot start; empty if it can."""
    code: Code = "ranks-differ"
    """Code of the error that ends the launch if this process cannot start or differs from the first one."""


def record_of(facts: Facts, env: Mapping[str, str], *, precision: str | None = None, device: str = "") -> Record:
    """Return this process's record: ``facts`` of its command, plus facts of its environment.

    precision: value of the option; None for the launcher's. device: identity of its GPU; empty on a CPU.
    """
    all_facts = facts | {
        "processes": (env.get("WORLD_SIZE", "1"), ""),
        "device": ("a GPU" if device else "the CPU", ""),
        "precision": (precision or env.get("ACCELERATE_MIXED_PRECISION", "no").lower(), ""),
        **{name: (env.get(name, usual).lower(), "") for name, usual in VARIABLES.items()},
    }
    sendable = {
        _sendable(key): (None if text is None else _sendable(text), _sendable(at))
        for key, (text, at) in all_facts.items()
    }
    return Record(sendable, versions(), _sendable(socket.gethostname()), device, int(env.get("WORLD_SIZE", "1")))


def problem_record(problem: str, code: Code) -> Record:
    """Return the record of a process that cannot start."""
    return Record(host=_sendable(socket.gethostname()), problem=_sendable(problem), code=code)


def _sendable(text: str) -> str:
    """Escape lone surrogates (from names that are not UTF-8), because JSON cannot contain them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def versions() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES, by name."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NOTHING
    return found


def command_facts(command: str, options: Any) -> Facts:
    """Return facts of the command and its options (a dataclass or a dict), by their names on the command line."""
    facts: Facts = {"command": (command, "")}
    for name, value in _named(options):
        place = str(value.absolute()) if (command, name) == ("predict", OUTPUT_OPTION) and value else ""
        if name in PLACES:
            value = None if value is None else "given"
        facts[f"--{name.replace('_', '-')}"] = _text(value), place
    return facts


def _named(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the options that are compared. Options of a group keep their own names."""
    named = vars(options) if is_dataclass(options) else options
    for name, value in named.items():
        if name not in RANK_LOCAL_OPTIONS:
            yield from _named(value) if is_dataclass(value) else [(name, value)]


def config_facts(config: Config) -> Facts:
    """Return facts of a resolved configuration, by dotted keys. A weights file is represented by its content."""
    facts: Facts = {}
    for section, values in asdict(config).items():
        facts |= {f"{section}.{key}": (_text(value), "") for key, value in values.items()}
    if (weights := config.model.weights) is not None:
        facts["model.weights"] = file_fact(Path(weights))
    if config.train.feature_cache is not None:
        facts["train.feature_cache"] = ("given", "")
    return {key: fact for key, fact in facts.items() if key not in RANK_LOCAL_OPTIONS}


def model_facts(folder: ModelFolder, name: str = "model") -> Facts:
    """Return facts of everything in a model folder that influences its predictions."""
    place, decisions, preprocessing = str(folder.path), folder.decisions, folder.preprocessing
    facts: dict[str, object] = {
        "weights": folder.fingerprint[:16],
        "architecture": folder.config["architecture"],
        "genres": list(folder.labels.genres),
        **vars(preprocessing),
        "calibration method": decisions.calibration,
    }
    numbers = zip(*(part.tolist() for part in (decisions.thresholds, decisions.scale, decisions.bias)), strict=True)
    for genre, (threshold, *calibration) in zip(folder.labels.genres, numbers, strict=True):
        facts[f"threshold of {genre}"], facts[f"calibration of {genre}"] = threshold, calibration
    return {f"{name} {key}": (_text(value), place) for key, value in facts.items()}


def set_facts(manifest: Manifest, where: object) -> Facts:
    """Return facts of a shard set: digests of its shards, tables and indexes, from its manifest."""
    place = re.sub(r"://[^/@]*@", "://", str(where)).partition("?")[0]  # without a URL's password
    facts: Facts = {"shard set": (manifest.fingerprint, place)}
    for split, table in manifest.tables.items():
        facts[f"table of samples of {split}"] = (table.sha256[:16], place)
    facts["manifest's list of shards"] = (fingerprint([vars(shard) for shard in manifest.shards])[:16], place)
    return facts


def images_facts(root: Path, paths: Sequence[Path]) -> Facts:
    """Return facts of the images in a folder: relative names and file sizes."""
    found = [(path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else -1) for path in paths]
    return {"folder of images": (f"{len(found)} files, {fingerprint(found)[:16]}", str(root))}


def file_fact(path: Path) -> tuple[str, str]:
    """Return (start of the file's sha256, or "no such file"; path)."""
    return (sha256_file(path)[:16] if path.is_file() else "no such file"), str(path)


def _text(value: object) -> str | None:
    """Return ``value`` as text; equal values give equal texts. None stays None."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def parse_record(data: bytes, rank: int) -> Record:
    """Parse a record that a process sent. Raises UserError if it is not valid, for example from another version."""
    remedy = "install the same version of this toolkit everywhere"
    return parse_as(data, Record, f"the record of rank {rank}", "record", remedy)


def disagreement(before: Sequence[Record], other: Record) -> str:
    """Return one line that says how ``other``, the record of the next rank, differs from the first; empty if equal.

    before: the records of all lower ranks, which agree.
    """
    first, rank = before[0], len(before)
    who = _who(first, other, rank)
    if other.problem:
        return f"{who} cannot start: {one_line(other.problem)}"
    if other.device and other.device in (devices := [record.device for record in before]):
        return (
            f"{who} would share a GPU with rank {devices.index(other.device)}: start as many processes on a machine as "
            f"it has GPUs (--num_processes), or run on the CPU (launch/accelerate/cpu_2.yaml)"
        )
    keys = _differing(first.facts, other.facts)
    written = f"--{OUTPUT_OPTION}"
    if not keys and first.host == other.host and first.facts.get(written) != other.facts.get(written):
        keys = [written]
    if not keys:
        return ""
    remedy = "start all processes with the same command, files and configuration"
    if keys[0] == "shard set":
        remedy = (
            "the processes have different shard sets: a node has another copy, or the set is being replaced; give all "
            "nodes the same complete set"
        )
    return f"{who} has {_told(keys, first.facts, other.facts)}: {remedy}"


def other_versions(first: Record, other: Record, rank: int) -> str:
    """Return one line about libraries whose versions differ in ``other``; empty if all are equal."""
    ours: Facts = {name: (value, "") for name, value in first.versions.items()}
    theirs: Facts = {name: (value, "") for name, value in other.versions.items()}
    keys = _differing(ours, theirs)
    if not keys:
        return ""
    remedy = "results may differ from those of one version; install the same everywhere"
    return f"{_who(first, other, rank)} has {_told(keys, ours, theirs)}: {remedy}"


def _told(keys: Sequence[str], first: Facts, other: Facts) -> str:
    """Describe the difference of the first of ``keys``, and name up to three others."""
    (own, place), (firsts, other_place) = (facts.get(keys[0], (None, "")) for facts in (other, first))
    here, there = told_apart(own, firsts)
    others = f" (and others in {some([_name(key) for key in keys[1:]], 3)})" if keys[1:] else ""
    return f"{_name(keys[0])} {here}{_at(place)}, the first process {there}{_at(other_place)}{others}"


def told_apart(one: str | None, other: str | None) -> tuple[str, str]:
    """Return two different values as short, printable, different texts. Long values are cut near the first difference.

    >>> told_apart("0.1", None)
    ('0.1', 'nothing')
    """
    start = 0
    if max(len(one or ""), len(other or "")) > WIDTH:
        pairs = enumerate(zip(one or "", other or "", strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(len(one or ""), len(other or "")))
        start = max(0, same - WIDTH // 2)
    return _excerpt(one, start), _excerpt(other, start)


def _excerpt(value: str | None, start: int) -> str:
    if value is None:
        return NOTHING
    text = _quoted(value[start : start + WIDTH])
    return f"{'…' if start else ''}{text}{'…' if len(value) > start + WIDTH else ''}"


def _quoted(text: str) -> str:
    """Return ``text`` unchanged if it is unambiguous, else as JSON."""
    if _PLAIN.fullmatch(text) and text.isprintable() and text != NOTHING:
        return text
    return printable(json.dumps(text, ensure_ascii=False))


def _differing(first: Facts, other: Facts) -> list[str]:
    """Return the keys whose values differ, in the order of ``first``. For another command return only "command"."""
    keys = [key for key in {**first, **other} if first.get(key, (None,))[0] != other.get(key, (None,))[0]]
    return keys[:1] if keys[:1] == ["command"] else keys


def _who(first: Record, other: Record, rank: int) -> str:
    return f"rank {rank}" + (f" (on {_name(other.host)})" if other.host != first.host else "")


def _name(key: str) -> str:
    return printable(one_line(key))[:WIDTH]


def _at(place: str) -> str:
    return f" ({printable(one_line(place))})" if place else ""
