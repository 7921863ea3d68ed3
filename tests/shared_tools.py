"""What tests of all packages share: small sets of drawn posters, and disks that are really full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards.build.run import BuildOptions, build_shards


def build_small_set(posters: Path, out: Path, seed: int = 0) -> Path:
    """Shards of 20 of a folder's posters (images/ and metadata.csv), three fifths of them for training."""
    build_shards(
        BuildOptions(
            metadata=posters / "metadata.csv",
            images=posters / "images",
            out=out,
            fractions=(0.6, 0.2, 0.2),
            samples_per_shard=20,
            seed=seed,
            max_rejected=1.0,  # some are bad on purpose
            workers=1,
        )
    )
    return out


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """``folder`` as a file system of ``size`` (16k, 16m); skips the test where none can be mounted."""
    folder.mkdir()
    able = os.geteuid() == 0 and shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if not able or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
