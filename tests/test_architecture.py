"""The house: imports point one way, asking for help is quick, launch files are whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "never"),
    [("shards", {"toolkit", "launch", "torch", "torchvision", "timm", "accelerate"}), ("toolkit", {"launch"})],
)
def test_imports_point_launch_toolkit_shards(package: str, never: set[str]):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imports_of(path) & never, path


def test_launchers_only_hand_over():
    for path in (ROOT / "launch").glob("*.py"):
        assert imports_of(path) <= {"sys", "toolkit"}, path


def test_help_and_shard_commands_load_no_torch():
    code = (
        "import sys; from toolkit.cli.commands import COMMANDS; from shards.cli.options import Parser\n"
        "for name in filter(lambda name: COMMANDS[name].options, COMMANDS):\n"
        "    assert '--help' in Parser(name, COMMANDS).format_help() and 'torch' not in sys.modules, name"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_list_of_commands_loads_no_library():
    code = (
        "import sys, contextlib; from toolkit.cli.main import main\n"
        "for words in (['--help'], ['shards', '-h']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(words)\n"
        "assert not {'numpy', 'pandas', 'torch', 'jsonargparse'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count("usage: posters") == 2, run.stderr


def test_files_are_of_a_readable_length():
    for package in ("shards", "toolkit", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path


@pytest.mark.parametrize("path", sorted((ROOT / "launch" / "accelerate").glob("*.yaml")), ids=lambda p: p.name)
def test_accelerate_reads_every_launch_config(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    raw = yaml.safe_load(path.read_text())
    assert config.num_processes == raw["num_processes"] >= 1
    assert path.read_text().startswith("# ")
