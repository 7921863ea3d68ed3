"""One virtual environment per peer of the benchmarks: ``python tests/bench/peers.py [NAME...]``.

The peers' dependencies contradict each other, so each gets a venv of its own in .peers/NAME/venv (git-ignored). A .pth
file adds the packages of the interpreter that runs this, so that torch is not downloaded again; what a peer needs in
another version is installed in front of it. .peers/NAME/status.json says whether it worked, or why not; what has
worked with the same requirements and interpreter is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / ".peers"


@dataclass(frozen=True)
class Peer:
    """How a peer is installed."""

    requirements: list[str]
    """What pip installs: the versions that were measured."""
    proof: str
    """A statement that shows that it works."""
    shares: bool = True
    """Whether it sees this interpreter's packages. Not DALI: it looks for its libraries beside itself only."""
    hint: str = ""
    """What a machine needs before pip can build it."""


PEERS: dict[str, Peer] = {
    "transformers": Peer(["transformers==5.24.0"], "import transformers"),
    "litdata": Peer(["litdata==0.2.76"], "import litdata"),
    "mosaic_streaming": Peer(["mosaicml-streaming==0.13.0"], "import streaming"),
    "energon": Peer(["megatron-energon==7.4.1"], "import megatron.energon"),
    "grain": Peer(["grain==0.2.18"], "import grain"),
    "torchdata": Peer(["torchdata==0.11.0"], "import torchdata.stateful_dataloader"),
    "spdl": Peer(
        ["spdl==0.8.0"],
        "from spdl.io.utils import get_ffmpeg_versions; get_ffmpeg_versions()",
        hint="needs FFmpeg's shared libraries, `apt-get install libavdevice-dev libavfilter-dev`",
    ),
    "torchcodec": Peer(["torchcodec==0.17.0"], "import torchcodec.decoders"),
    "dali_cpu": Peer(["nvidia-dali-cuda120==2.4.0", "numpy==2.4.6"], "import nvidia.dali.fn", shares=False),
    "ffcv": Peer(
        ["ffcv==1.0.2"],
        "import ffcv",
        hint="needs a compiler and `apt-get install libopencv-dev libturbojpeg0-dev pkg-config`",
    ),
}
#: Never replaced by a peer's wish: one torch is 5 GB, and all stacks must be measured on the same one.
KEPT = ("torch", "torchvision")
PIP_SECONDS = 1200


def python_of(name: str) -> Path:
    """The interpreter of a peer's venv."""
    return FOLDER / name / "venv" / "bin" / "python"


def status_of(name: str) -> dict[str, Any]:
    """What the last attempt to install a peer gave: {"ok", "reason", "requirements", "python"}."""
    try:
        return json.loads((FOLDER / name / "status.json").read_text())
    except (OSError, ValueError):
        return {"ok": False, "reason": f"not installed (python tests/bench/peers.py {name})"}


def install(name: str) -> dict[str, Any]:
    """Make the venv of a peer, unless it is there. Returns its status."""
    peer = PEERS[name]
    wanted = {"requirements": peer.requirements, "python": platform.python_version(), **_kept_versions()}
    status = status_of(name)
    if status["ok"] and all(status.get(key) == value for key, value in wanted.items()):
        return status
    reason = _attempt(name, peer)
    status = {"ok": not reason, "reason": reason, **wanted}
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / name / "status.json").write_text(json.dumps(status, indent=2) + "\n")
    return status


def _attempt(name: str, peer: Peer) -> str:
    """Install; return why it failed, or nothing."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "install.log", "w") as log:
        if reason := _run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], log):
            return f"venv: {reason}"
        if peer.shares:
            _share_packages(name)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.writelines(f"{package}=={at}\n" for package, at in _kept_versions().items())
            constraints.flush()
            pip = [str(python_of(name)), "-m", "pip", "install", "-c", constraints.name, *peer.requirements]
            if reason := _run(pip, log):
                hint = f"; {peer.hint}" if peer.hint else ""
                return f"pip: {reason}{hint}"
        if reason := _run([str(python_of(name)), "-c", peer.proof], log):
            return f"{peer.proof}: {reason}; {peer.hint}".removesuffix("; ")
    return ""


def _share_packages(name: str) -> None:
    """Put this interpreter's packages behind the venv's own."""
    site = Path(
        subprocess.check_output(
            [str(python_of(name)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    shared = dict.fromkeys(sysconfig.get_path(key) for key in ("purelib", "platlib"))
    (site / "_shared.pth").write_text("".join(f"{path}\n" for path in shared))


def _run(command: list[str], log: Any) -> str:
    """Run a command with its output in the log; return its last telling line if it fails."""
    start = log.tell()
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        code = subprocess.run(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, timeout=PIP_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return f"took more than {PIP_SECONDS} seconds"
    if code == 0:
        return ""
    log.flush()
    text = Path(log.name).read_text(errors="replace")[start:]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [f"exit status {code}"]
    errors = [line for line in lines if "error" in line.lower() and not line.startswith("╰")]
    return (errors or lines)[-1].replace(str(FOLDER), ".peers").replace(sys.prefix, "VENV")[:200]


def _kept_versions() -> dict[str, str]:
    found = {}
    for package in KEPT:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Install the named peers, or all; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)} (default: all)")
    names = parser.parse_args().names or list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        print(f"error: no peer {unknown[0]!r}; there are {', '.join(PEERS)}", file=sys.stderr)
        return 2
    failed = False
    for name in names:
        print(f"{name}: {' '.join(PEERS[name].requirements)} ...", flush=True)
        status = install(name)
        failed = failed or not status["ok"]
        print(f"{name}: {'ready' if status['ok'] else 'FAILED, ' + status['reason']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
