"""Wheels for a GPU machine without a network, in pieces: ``python tests/bench/gpu_wheels.py --python 3.12 --out DIR``

Downloads what setup.cfg needs, with all that those packages need, for another Python: all but torch, torchvision and
NVIDIA's packages, which the GPU machine must have. Run it in an environment where poster-toolkit is installed with
its extra ``dev``, because the names come from there, and the versions from constraints.txt. --lacks-only FILE leaves
out what a GPU machine has: FILE has the names, one a line, such as the output of ``pip list --format freeze`` there.
The wheels are put in DIR/wheels-1, DIR/wheels-2, ..., each smaller than --limit-mib.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from gpu.pieces import deal, mebibytes
from gpu.wheels import NEVER, OWN, ROOT, plain, requirements
from packaging.requirements import Requirement

#: Text detection, of the extra "clean". onnxruntime for a GPU is larger than a piece, so a machine must have it.
MORE = ("rapidocr", "opencv-python-headless", "onnxruntime")
#: Newer glibc versions run wheels of older ones; pip wants each named.
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)),
    *(f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")),
]


def names_for(python: str) -> dict[str, str]:
    """Name → version (of constraints.txt, else "") of all that setup.cfg needs, but for torch and NVIDIA's packages."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if re.match(r"[\w.-]+==", line):
            constraint = Requirement(line.partition(" #")[0])
            if constraint.marker is None or constraint.marker.evaluate(environment):
                pinned[plain(constraint.name)] = next(iter(constraint.specifier)).version
    found: dict[str, str] = {}
    todo = [*requirements(), *MORE, *OWN]
    while todo:
        name = plain(todo.pop())
        if name in found or name in NEVER or name.startswith("nvidia-"):
            continue
        found[name] = pinned.get(name, "")
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            wanted = [environment, *({**environment, "extra": extra} for extra in EXTRAS.get(name, ()))]
            if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
                todo.append(requirement.name)
    return found


#: Extras that setup.cfg asks for.
EXTRAS = {"jsonargparse": ("signatures",)}


def download(names: dict[str, str], python: str, folder: Path) -> None:
    """Fetch the wheels, which pip checks. Raises CalledProcessError."""
    wanted = [f"{name}=={version}" if version else name for name, version in sorted(names.items())]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={python}", *(f"--platform={name}" for name in PLATFORMS), f"--dest={folder}", *wanted,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def without(names: Iterable[str], there: Path | None) -> set[str]:
    """The names that a list of installed packages lacks."""
    lines = there.read_text().splitlines() if there else []
    return set(names) - {plain(re.split(r"[=<> @]", line.strip())[0]) for line in lines}


def main() -> int:
    """Parse, download, deal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", required=True, metavar="3.12", help="the GPU machine's Python")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there, or is empty")
    parser.add_argument("--lacks-only", type=Path, metavar="FILE", help="names of packages that the machine has")
    parser.add_argument("--limit-mib", type=mebibytes, default=50.0, help="largest piece (default: %(default)s)")
    options = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.error(f"--python must be a version such as 3.12, not {options.python}")
    if options.lacks_only is not None and not options.lacks_only.is_file():
        parser.error(f"--lacks-only {options.lacks_only} is not a file")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is not a folder")
    if options.out.exists() and any(options.out.iterdir()):
        print(f"error: --out {options.out} has files: choose an empty folder", file=sys.stderr)
        return 2
    try:
        names = names_for(options.python)
    except metadata.PackageNotFoundError as error:
        print(f"error: {error.name} is not installed here: pip install -e '.[dev]' first", file=sys.stderr)
        return 2
    kept = without(names, options.lacks_only)
    try:
        download({name: names[name] for name in kept}, options.python, options.out / "all")
    except subprocess.CalledProcessError as error:
        print(f"error: pip download ended with status {error.returncode}; its message is above", file=sys.stderr)
        return 2
    files = sorted((options.out / "all").glob("*.whl"))
    for number, part in enumerate(deal(files, options.limit_mib), 1):
        piece = options.out / f"wheels-{number}"
        piece.mkdir()
        for path in part:
            path.rename(piece / path.name)
        size = sum(path.stat().st_size for path in piece.iterdir())
        print(f"{piece}: {len(part)} wheels, {size / 2**20:.1f} MiB")
    (options.out / "all").rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
