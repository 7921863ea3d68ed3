"""What a Python lacks, from a folder of wheels: unpacked beside it, without pip. Standard library only.

A package is taken from the wheels if this Python does not have it, or has it older than setup.cfg allows. What this
Python has stays as it is, so that the torch that fits the GPU's driver is the one that is measured.
"""

from __future__ import annotations

import configparser
import platform
import re
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
#: These must be there already: they fit the driver, and are larger than a piece.
NEVER = ("torch", "torchvision", "triton")
#: Needed by the tests.
OWN = ("pytest", "hypothesis")


class Unusable(Exception):
    """The folder of wheels does not do; the text is one line."""


def plain(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(root: Path = ROOT, extra: str = "") -> dict[str, str]:
    """Name → lowest version ("" if any) of what setup.cfg needs, or of one of its extras."""
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    text = parser["options.extras_require"][extra] if extra else parser["options"]["install_requires"]
    found = {}
    for line in filter(None, text.splitlines()):
        name = re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]
        lowest = re.search(r">=\s*([\w.]+)", line)
        found[plain(name)] = lowest.group(1) if lowest else ""
    return found


def numbers(version: str) -> tuple[int, ...]:
    """``2.11.0+cu130`` → (2, 11, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version, maxsplit=1)[0]))


def lacks(name: str, lowest: str = "") -> bool:
    """Whether this Python does not have a distribution, or an older one."""
    try:
        return numbers(metadata.version(name)) < numbers(lowest)
    except metadata.PackageNotFoundError:
        return True


def fits(wheel: Path) -> bool:
    """Whether a wheel is for this Python and this machine, by the three tags at the end of its name."""
    pythons, abi, platforms = wheel.stem.split("-")[-3:]
    return _fits_python(pythons.split("."), abi) and any(map(_fits_platform, platforms.split(".")))


def _fits_python(pythons: Iterable[str], abi: str) -> bool:
    major, minor = sys.version_info[:2]
    for tag in pythons:
        if tag in (f"py{major}", f"py{major}{minor}", f"cp{major}{minor}"):
            return True
        match = re.fullmatch(rf"cp{major}(\d+)", tag)
        if match and abi == "abi3" and int(match.group(1)) <= minor:
            return True
    return False


def _fits_platform(tag: str) -> bool:
    if tag == "any":
        return True
    legacy = {"manylinux1": "2_5", "manylinux2010": "2_12", "manylinux2014": "2_17"}
    tag = re.sub(r"^manylinux(1|2010|2014)(?=_)", lambda found: f"manylinux_{legacy[found.group()]}", tag)
    match = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag)
    if match is None:
        return tag == f"linux_{platform.machine()}"
    library, version = platform.libc_ver()
    needs = (int(match.group(1)), int(match.group(2)))
    return library == "glibc" and numbers(version) >= needs and match.group(3) == platform.machine()


def unpack(folder: Path | None, out: Path) -> list[str]:
    """Unpack what this Python lacks from the wheels below ``folder``; return ``name version`` of each.

    Raises Unusable if something is still missing, or no wheel of it fits.
    """
    needed = requirements()
    wheels: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.whl")) if folder else ():
        wheels.setdefault(plain(path.name.split("-")[0]), []).append(path)
    taken = []
    for name, paths in wheels.items():
        if name in NEVER or name.startswith("nvidia-") or not lacks(name, needed.get(name, "")):
            continue
        suitable = [path for path in paths if fits(path)]
        if not suitable:
            raise Unusable(
                f"{paths[0].name} is not for Python {platform.python_version()} on {platform.machine()}: make them "
                f"with tests/bench/gpu_wheels.py --python {sys.version_info[0]}.{sys.version_info[1]}"
            )
        newest = max(suitable, key=lambda path: numbers(path.name.split("-")[1]))
        _extract(newest, out)
        taken.append(f"{name} {newest.name.split('-')[1]}")
    _require_all(needed, taken)
    return taken


def _extract(wheel: Path, out: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out)
    except (OSError, zipfile.BadZipFile) as error:
        raise Unusable(f"{wheel} cannot be unpacked: {error}") from error
    for data in out.glob("*.data"):  # where a wheel puts what pip would move
        for part in ("purelib", "platlib"):
            for path in (data / part).glob("*"):
                path.rename(out / path.name)


def _require_all(needed: dict[str, str], taken: list[str]) -> None:
    there = {line.split()[0] for line in taken}
    names = [*needed, *OWN]
    missing = [name for name in names if name not in there and lacks(name, needed.get(name, ""))]
    if missing:
        torch = [name for name in missing if name in NEVER]
        remedy = (
            "install a torch that fits the GPU's driver"
            if torch
            else f"make wheels with tests/bench/gpu_wheels.py --python {sys.version_info[0]}.{sys.version_info[1]} "
            f"and pass their folder as --wheels"
        )
        wanted = ", ".join(f"{name} {needed[name]}".strip() if name in needed else name for name in torch or missing)
        raise Unusable(f"{sys.executable} lacks {wanted} (or has an older one): {remedy}")
