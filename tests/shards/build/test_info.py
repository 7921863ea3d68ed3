"""The tables that people read."""

from __future__ import annotations

import io
from pathlib import Path

from shards.cli.main import render_info
from shards.console import console
from shards.dataset.manifest import Manifest, Shard

pytest_plugins = ("shard_fixtures",)


def rendered(manifest: Manifest) -> str:
    out = io.StringIO()
    render_info(manifest, console(out, 200))
    return out.getvalue()


def test_counts_sum_up(shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    text = rendered(manifest)
    for name, split in manifest.split_summary().items():
        line = next(line for line in text.splitlines() if line.split("│")[1:2] and line.split("│")[1].strip() == name)
        assert f" {split['samples']:,} " in line
    assert manifest.fingerprint in text and manifest.labels.fingerprint in text
    assert "1 decompression bomb" in text and "2 truncated" in text
    assert f"in {manifest.source['duplicate_groups']} groups, each group within one split" in text
    assert all(genre in text for genre in manifest.genres)


def test_commonest_genres_come_first() -> None:
    manifest = Manifest(["A", "B", "C"], [Shard("x.tar", "train", 9, 1, "", 1, 1, [1, 5, 5])])
    lines = rendered(manifest).splitlines()
    at = [next(i for i, line in enumerate(lines) if line.startswith(f"│ {genre} ")) for genre in "BCA"]
    assert at == sorted(at)


def test_genres_that_look_like_markup_are_shown_as_they_are() -> None:
    names = ["[/b]", "[red]Horror", "[link=x]y[/link]", "日本"]
    text = rendered(Manifest(names, [Shard("x.tar", "[/x]", 4, 1, "", 1, 1, [1, 1, 1, 1])]))
    assert all(name in text for name in [*names, "[/x]"])


def test_sets_without_genres_or_samples() -> None:
    assert "Genres (0)" in rendered(Manifest([], [Shard("x.tar", "train", 0, 10240, "", 0, 0, [])]))
    assert "Genres (1)" in rendered(Manifest(["A"], []))
