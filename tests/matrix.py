"""Run the quick tests with each Python of this machine, and with the lowest versions: `make test-matrix`.

Each Python gets a virtual environment in build/matrix/, made by uv. The versions are those of constraints.txt. In the
last environment, they are the lowest that setup.cfg allows. The exit status is 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: Tests of all layers that need no optional package. They take some minutes for each Python.
QUICK = (
    "tests/shards/inputs", "tests/shards/tables", "tests/shards/dataset", "tests/shards/cli",
    "tests/toolkit/config", "tests/toolkit/decisions", "tests/toolkit/metrics", "tests/toolkit/model_folder",
    "tests/toolkit/cli/test_functions.py", "tests/toolkit/prediction/test_sources.py",
    "tests/toolkit/prediction/test_predict_tables.py", "tests/shards/storage/test_csv_text.py",
)  # fmt: skip
TOOLS = ("pytest>=8", "hypothesis>=6.100", "aiohttp>=3.10", "markdown-it-py>=3", "opencv-python-headless>=4.10.0.84")


def main() -> int:
    """Run the tests in each environment, print a summary and return the exit status."""
    parser = argparse.ArgumentParser(description="Run the quick tests with each Python and with the lowest versions.")
    parser.add_argument("--pythons", nargs="*", default=PYTHONS, help="versions of Python to use")
    parser.add_argument("--no-lowest", action="store_true", help="leave out the lowest versions")
    parser.add_argument("tests", nargs="*", help="tests to run in place of the quick ones")
    options = parser.parse_args()
    found = {version: find_python(version) for version in options.pythons}
    here = {version: path for version, path in found.items() if path}
    results = {f"Python {version}": "not on this machine" for version in found if version not in here}
    for version, path in here.items():
        results[f"Python {version}"] = run(version, path, lowest=False, tests=options.tests)
    if here and not options.no_lowest:
        version, path = next(iter(here.items()))
        results[f"lowest versions, Python {version}"] = run(version, path, lowest=True, tests=options.tests)
    print("\n".join(f"{name:<32}{result}" for name, result in results.items()))
    return 1 if any(result.startswith("failed") for result in results.values()) else 0


def find_python(version: str) -> str | None:
    """Return the path of a Python on this machine or of pyenv. Return None if there is none; nothing is downloaded."""
    command = ["uv", "python", "find", "--no-project", "--no-python-downloads", version]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip()
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return next((str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))), None)


def run(version: str, path: str, *, lowest: bool, tests: list[str]) -> str:
    """Install the toolkit for a Python and run the tests. Return "passed", or "failed" with the step."""
    folder = WORK / (f"lowest-{version}" if lowest else version)
    python = folder / "bin" / "python"
    install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
    versions = ["--resolution", "lowest-direct"] if lowest else ["--constraint", str(ROOT / "constraints.txt")]
    steps = {
        "making the environment": ["uv", "venv", "--quiet", "--clear", "--python", path, str(folder)],
        "installing": [*install, *versions, str(ROOT), *TOOLS],
        "testing": [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *(tests or QUICK)],
    }
    for step, command in steps.items():
        print(f"Python {version}{', lowest versions' if lowest else ''}: {step}", flush=True)
        if subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode:
            return f"failed in {step}"
    return "passed"


if __name__ == "__main__":
    sys.exit(main())
