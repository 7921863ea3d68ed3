"""Fixtures of the tests of ``shards``; a test module that wants them says ``pytest_plugins = ("shard_fixtures",)``.

They are no conftest.py, because tests/toolkit has one and imports from it by that name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_tools import Source, bomb_png, build, draw, draw_posters, encoded, write_csv, write_file

#: Ids that a careless program trips over; each names a sound poster.
ODD_IDS = (
    "tt0001.v2.final",
    "sub/folder/x",
    "sub/folder.with.dot/y.z",
    "__meta__",
    "__x",
    ".hidden",
    "-dash",
    "a b",
    "100%",
    "quote'\"",
    "comma,id",
    "ünï-日本-🎬",
    "e\u0301",  # beside the next, which is the same letter composed: two ids, two files
    "é",
    "x" * 200,
    "映" * 80,
    "PAX\u2028line",
)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Sound posters of all kinds, odd ids, duplicates, and every kind of bad row. Read-only."""
    folder = tmp_path_factory.mktemp("source")
    plain = draw_posters(folder, 80)
    images, good = plain.images, dict(plain.good)
    for number, sample_id in enumerate(ODD_IDS):
        write_file(images / f"{sample_id}.jpg", encoded(draw(f"odd{number}")))
        good[sample_id] = ("Drama", "Comedy")
    kinds = {
        "large": (".jpg", encoded(draw("large", 400, 600))),
        "banner": (".jpg", encoded(draw("banner", 900, 60))),
        "rgba": (".png", encoded(Image.merge("RGBA", [*draw("rgba").split(), Image.new("L", (60, 90), 128)]), "PNG")),
        "upper": (".JPG", encoded(draw("upper"))),
        "jpeg": (".jpeg", encoded(draw("jpeg"))),
        "gif": (".jpg", encoded(draw("gif"), "GIF")),
    }  # fmt: skip
    for name, (extension, data) in kinds.items():
        write_file(images / f"{name}{extension}", data)
        good[name] = ("Sci-Fi",)
    copies = []
    for number in range(4):
        write_file(images / f"copy{number}.jpg", (images / f"p{number:04d}.jpg").read_bytes())
        smaller = draw(f"p{number + 4:04d}").resize((48, 72))
        write_file(images / f"reencoded{number}.jpg", encoded(smaller, quality=60))
        copies += [(f"copy{number}", f"p{number:04d}"), (f"reencoded{number}", f"p{number + 4:04d}")]
    for name, original in copies:
        good[name] = good[original]

    sound = encoded(draw("spoilt"))
    png = encoded(draw("spoilt png"), "PNG")
    files = {
        "zero": (b"", "zero bytes"),
        "cut": (sound[: len(sound) // 2], "truncated"),
        "text": (b"<html>404</html>", "not an image"),
        "small": (encoded(draw("small", 20, 90)), "too small"),
        "bomb": (bomb_png(), "decompression bomb"),
    }
    bad = {}
    for name, (data, reason) in files.items():
        write_file(images / f"{name}.jpg", data)
        bad[name] = reason
    write_file(images / "cutpng.png", png[: len(png) // 2])
    (images / "folder.jpg").mkdir()
    bad |= {"cutpng": "truncated", "folder": "missing file", "missing": "missing file"}
    rows = [(i, "a title", "1999", repr(list(g))) for i, g in good.items()]
    rows += [(i, "", "", "['Drama']") for i in bad]
    for name, text, reason in (
        ("empty_list", "[]", "no genres"),
        ("none_listed", "(no genres listed)", "no genres"),
        ("unclosed", "['Drama', 'Rom", "unparsable genres"),
        ("code", "[__import__('os').system('touch /tmp/pwned')]", "unparsable genres"),
        ("surrogate", '["\\ud800"]', "unparsable genres"),
        ("deep", "[" * 5000, "unparsable genres"),
        ("../escape", "['Drama']", "bad id"),
    ):
        write_file(images / f"{name}.jpg", sound)
        rows.append((name, "", "", text))
        bad[name] = reason
    rows.append(("p0000", "", "", repr(list(good["p0000"]))))
    bad["p0000"] = "repeated id"
    order = np.random.default_rng(1).permutation(len(rows))
    table = write_csv(folder / "meta.csv", [rows[i] for i in order])
    return Source(images, table, good, bad, tuple(copies))


@pytest.fixture(scope="session")
def shard_set(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ``source``, 20 posters each. Read-only."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build(source, out)
    return out


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Thirty plain posters, for tests that build. Read-only."""
    return draw_posters(tmp_path_factory.mktemp("few"), 30)


@pytest.fixture(scope="session")
def few_shards(few: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ``few``, at most eight posters each. Read-only."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build(few, out, samples_per_shard=8)
    return out


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``posters ...`` in this process: (exit status, stdout, stderr)."""
    from toolkit.cli.main import run

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)
