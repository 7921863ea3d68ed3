"""Preprocessing never imports torch: a worker a core would cost seconds and hundreds of megabytes each."""

from __future__ import annotations

import shutil
from pathlib import Path

from shard_tools import Source, build_command, python

pytest_plugins = ("shard_fixtures",)

SCRIPT = """
import importlib, pkgutil, sys
import shards
for module in pkgutil.iter_modules(shards.__path__):
    importlib.import_module("shards." + module.name)
from toolkit.cli.main import main
for command in sys.argv[1:]:
    assert main(command.split("\\t")) == 0, command
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision", "timm"))
print("loaded:", loaded)
"""


def test_every_module_and_command_does_without(few: Source, few_shards: Path, tmp_path: Path) -> None:
    out, foreign = tmp_path / "out", tmp_path / "foreign"
    foreign.mkdir()
    for tar in few_shards.glob("*.tar"):
        shutil.copy(tar, foreign)
    commands = [
        build_command(few, out, "--workers", 1),
        ["shards", "verify", str(out), "--workers", "1"],
        ["shards", "info", str(out)],
        ["shards", "index", str(foreign), "--workers", "1"],
    ]
    done = python("-c", SCRIPT, *("\t".join(command) for command in commands))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
