"""Compare the processes of a launch before they start to work.

The processes of a launch exchange gradients, logits and counters. If one process uses another model, option,
configuration or shard set, the result is wrong without an error. So each process makes a record of facts: the values
that its results depend on. The first process compares the records (launch.py exchanges them). Threads, paths and GPU
models may differ. Files are compared by content. Different library versions cause a warning.

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
from toolkit.config.model_files import CONFIG, LABELS, model_folder_of
from toolkit.config.schema import Config

if TYPE_CHECKING:
    from shards.dataset.manifest import Manifest
    from toolkit.model_folder.folder import ModelFolder

#: Name of a fact → (its value as text, the path from which it was read). Paths are only for messages.
Facts: TypeAlias = dict[str, tuple[str | None, str]]

#: Options whose values are local paths. The record says only whether a path is given. Other facts compare the files.
PATH_OPTIONS = ("model", "models", "shards", "directory", "image", "out", "report", "compare", "onnx")
#: Option for the folder to which every process of a prediction writes. On one machine this folder must be the same.
OUTPUT_OPTION = "out"
#: Options and configuration keys that do not change results. They are not compared.
RANK_LOCAL_OPTIONS = ("threads", "cache", "data.workers", "data.prefetch")
#: Environment variables that change results → their default values. environment.py checks accelerate's variables.
VARIABLES = {
    "NVIDIA_TF32_OVERRIDE": "",
    "ONEDNN_DEFAULT_FPMATH_MODE": "strict",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
}
#: Packages whose versions influence pixels, weights or results.
PACKAGES = ("poster-toolkit", "torch", "timm", "accelerate", "numpy", "pillow", "simplejpeg")

#: Maximum number of characters of a value in a message.
WIDTH = 60
NOTHING = "no value"
_PLAIN = re.compile(r"[\w.,:;+/@%()\[\]{}=<>*'-]([\w.,:;+/@%()\[\]{}=<>*'\" -]*[\w.,:;+/@%()\[\]{}=<>*'\"-])?")


class Record(msgspec.Struct, frozen=True):
    """The record of one process: everything on which its results depend (facts), and its host and GPU."""

    facts: Facts = {}
    versions: dict[str, str] = {}
    host: str = ""
    device: str = ""
    """Unique identifier of the process's GPU. Empty on a CPU."""
    processes: int = 0
    """Number of processes of the launch, from the launcher's variable WORLD_SIZE. 0 if unknown."""
    problem: str = ""
    """Why the process cannot start. Empty if it can."""
    code: Code = "ranks-differ"
    """Code of the error if this process cannot start, or differs from the first process."""


def record_of(facts: Facts, env: Mapping[str, str], *, precision: str | None = None, device: str = "") -> Record:
    """Return this process's record. It contains ``facts`` and the environment variables that change results.

    precision: value of --train.precision or --precision. If None, use the precision in the launcher's variables.
    device: unique identifier of the process's GPU. Empty on a CPU.
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
    """Escape surrogate characters, which JSON cannot contain. They come from file names that are not UTF-8."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def versions() -> dict[str, str]:
    """Return name → version, for Python and for each of PACKAGES."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command_facts(command: str, options: Any) -> Facts:
    """Return what must be equal in all processes: the command's name and its ``options`` (a dataclass or a dict)."""
    facts: Facts = {"command": (command, "")}
    for name, value in _named(options):
        place = str(value.absolute()) if (command, name) == ("predict", OUTPUT_OPTION) and value else ""
        if name in PATH_OPTIONS:
            value = None if value is None else "a path"
        facts[f"--{name.replace('_', '-')}"] = _text(value), place
    return facts


def _named(options: Any) -> Iterator[tuple[str, Any]]:
    named = vars(options) if is_dataclass(options) else options
    for name, value in named.items():
        if name not in RANK_LOCAL_OPTIONS:
            yield from _named(value) if is_dataclass(value) else [(name, value)]


def config_facts(config: Config) -> Facts:
    """Return the options that must be equal in all processes, by dotted key, and a digest of the weights file."""
    facts: Facts = {}
    for section, values in asdict(config).items():
        facts |= {f"{section}.{key}": (_text(value), "") for key, value in values.items()}
    if (weights := config.model.weights) is not None:
        facts["model.weights"] = file_fact(Path(weights))
    if config.train.feature_cache is not None:
        facts["train.feature_cache"] = ("a path", "")
    return {key: fact for key, fact in facts.items() if key not in RANK_LOCAL_OPTIONS}


def model_facts(folder: ModelFolder, name: str = "model") -> Facts:
    """Return all values of a model folder that affect predictions. They must be equal in all processes."""
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
    """Return what must be equal in all processes: digests of shards, tables and indexes, read from the manifest."""
    place = re.sub(r"://[^/@]*@", "://", str(where)).partition("?")[0]  # without user, password and query of a URL
    facts: Facts = {"shard set": (manifest.fingerprint, place)}
    for split, table in manifest.tables.items():
        facts[f"table of samples of {split}"] = (table.sha256[:16], place)
    facts["manifest's list of shards"] = (fingerprint([vars(shard) for shard in manifest.shards])[:16], place)
    return facts


def images_facts(root: Path, paths: Sequence[Path]) -> Facts:
    """Return what must be equal in all processes: the images' relative names and file sizes."""
    found = [(path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else -1) for path in paths]
    return {"folder of images": (f"{len(found)} files, {fingerprint(found)[:16]}", str(root))}


def file_fact(path: Path) -> tuple[str, str]:
    """Return the first 16 characters of the file's SHA-256 (or "no such file" if it is missing), and its path.

    If the path is a run or model folder, the digest is made from config.json, which has the SHA-256 of the weights, and
    from labels.json.
    """
    folder = model_folder_of(path)
    files = [folder / name for name in (CONFIG, LABELS)] if folder.is_dir() else [folder]
    digests = [sha256_file(file)[:16] if file.is_file() else "no such file" for file in files]
    return (digests[0] if len(digests) == 1 else fingerprint(digests)[:16]), str(path)


def _text(value: object) -> str | None:
    """Return ``value`` as text, or None for None. Equal values give equal texts."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def parse_record(data: bytes, rank: int) -> Record:
    """Parse the record that ``rank`` sent. Raises UserError if the record is not valid."""
    remedy = "install the same version of this toolkit everywhere"
    return parse_as(data, Record, f"the record of rank {rank}", "record", remedy)


def disagreement(before: Sequence[Record], other: Record) -> str:
    """Return one line that says how ``other`` differs from the first record. Return "" if it does not differ.

    ``before`` has the records of all lower ranks, which agree. ``other`` is the record of the next rank.
    """
    first, rank = before[0], len(before)
    who = _who(first, other, rank)
    if other.problem:
        return f"{who} cannot start: {one_line(other.problem)}"
    if other.device and other.device in (devices := [record.device for record in before]):
        return (
            f"{who} uses the same GPU as rank {devices.index(other.device)}: start at most one process per GPU "
            f"(--num_processes), or run on the CPU (launch/accelerate/cpu_2.yaml)"
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
            "the processes have different shard sets, because a node has another copy or the set is being replaced: "
            "give all nodes the same complete set"
        )
    return f"{who} has {_describe(keys, first.facts, other.facts)}: {remedy}"


def other_versions(first: Record, other: Record, rank: int) -> str:
    """Return one line about libraries whose versions differ between the records. Return "" if none differ."""
    ours: Facts = {name: (value, "") for name, value in first.versions.items()}
    theirs: Facts = {name: (value, "") for name, value in other.versions.items()}
    keys = _differing(ours, theirs)
    if not keys:
        return ""
    remedy = "results may differ from a run with equal versions; install the same versions everywhere"
    return f"{_who(first, other, rank)} has {_describe(keys, ours, theirs)}: {remedy}"


def _describe(keys: Sequence[str], first: Facts, other: Facts) -> str:
    """Describe how the first of ``keys`` differs, and name up to three of the other keys."""
    (own, source), (firsts, other_source) = (facts.get(keys[0], (None, "")) for facts in (other, first))
    here, there = shortened_pair(own, firsts)
    if own == firsts:  # the same option with different paths
        here, there, source, other_source = printable(one_line(source)), printable(one_line(other_source)), "", ""
    others = f" (other differences: {some([_name(key) for key in keys[1:]], 3)})" if keys[1:] else ""
    return f"{_name(keys[0])} {here}{_at(source)}, but the first process has {there}{_at(other_source)}{others}"


def shortened_pair(one: str | None, other: str | None) -> tuple[str, str]:
    """Return short, printable texts of two different values. Long values are cut around their first difference.

    >>> shortened_pair("0.1", None)
    ('0.1', 'no value')
    """
    start = 0
    if max(len(one or ""), len(other or "")) > WIDTH:
        pairs = enumerate(zip(one or "", other or "", strict=False))
        same = next((position for position, (a, b) in pairs if a != b), min(len(one or ""), len(other or "")))
        start = max(0, same - WIDTH // 2)
    return _excerpt(one, start), _excerpt(other, start)


def _excerpt(value: str | None, start: int) -> str:
    if value is None:
        return NOTHING
    text = _quoted(value[start : start + WIDTH])
    return f"{'…' if start else ''}{text}{'…' if len(value) > start + WIDTH else ''}"


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.isprintable() and text != NOTHING:
        return text
    return printable(json.dumps(text, ensure_ascii=False))


def _differing(first: Facts, other: Facts) -> list[str]:
    """Return the keys with different values, in the order of ``first``. If the commands differ, return ["command"]."""
    keys = [key for key in {**first, **other} if first.get(key, (None,))[0] != other.get(key, (None,))[0]]
    return keys[:1] if keys[:1] == ["command"] else keys


def _who(first: Record, other: Record, rank: int) -> str:
    return f"rank {rank}" + (f" (on {_name(other.host)})" if other.host != first.host else "")


def _name(key: str) -> str:
    return printable(one_line(key))[:WIDTH]


def _at(source: str) -> str:
    return f" ({printable(one_line(source))})" if source else ""
