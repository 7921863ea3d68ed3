"""Text removal on a cluster and at URLs: the posters of this machine's own run; a bug spoils no more than its chunk."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_tools import Cluster
from dask_tasks import BROKEN
from failing import fails
from remote_tools import new_bucket
from shard_tools import Source, build, encoded, only_error, posters, read_csv, tree, write_file
from text_tools import QUICK, poster, run_clean, titled_posters
from url_tools import at_url, remote_tree

from shards.clean import run as clean_run
from shards.clean.run import CleanOptions
from shards.clean.task import CleanTask, clean_chunk
from shards.storage.paths import storage_path
from shards.text.detector import DetectorOptions
from shards.text.pipeline import TextRemoval
from shards.text.report import NAME as REPORT

pytest_plugins = ("cluster_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

FRAGILE = TextRemoval(DetectorOptions("dask_tasks:Fragile"))


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Posters in three chunks; one is alone in being 164 pixels wide, and one has no genre."""
    source = titled_posters(tmp_path_factory.mktemp("titled"), 12)
    write_file(source.images / "t0006.jpg", encoded(poster("wide", (164, 240)), quality=95))
    with open(source.csv, "a") as stream:
        stream.write("t9999,a title,1999,[]\n")
    return source


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_run, "CHUNK", 4)


def alike(files: dict[str, str]) -> dict[str, str]:
    """What does not tell how long a poster took, or when its file was changed."""
    return {name: digest for name, digest in files.items() if name != REPORT and not name.startswith(".work/")}


def rows(folder: Any) -> list[dict[str, Any]]:
    """The report, but for the time that it took."""
    table = pq.read_table(pa.BufferReader((folder / REPORT).read_bytes()))
    return table.drop_columns(["seconds"]).to_pylist()


@pytest.fixture(scope="module")
def here(titled: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cleaned by this machine."""
    out = tmp_path_factory.mktemp("here") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean_run, "CHUNK", 4)
        run_clean(titled, out, sheet=3)
    return out


def test_on_a_cluster(cluster: Cluster, titled: Source, here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_clean(titled, out, workers=0, scheduler=str(cluster.file), sheet=3)
    assert (result.cleaned_now, result.slots) == (12, 2)
    assert alike(tree(out)) == alike(tree(here)) and rows(out) == rows(here)
    pictures = [tree(folder.with_name("out-sheet")) for folder in (out, here)]
    assert pictures[0]["contact_sheet-01.png"] == pictures[1]["contact_sheet-01.png"]
    again = run_clean(titled, out, workers=0, scheduler=str(cluster.file))
    assert again.cleaned_now == 0 and rows(out) == rows(here)


@pytest.mark.long
def test_at_urls(cluster: Cluster, titled: Source, here: Path, bucket: str) -> None:
    source = at_url(titled, new_bucket())
    for number, scheduler in enumerate((None, str(cluster.file))):
        out = storage_path(f"{bucket}/{number}/out")
        run_clean(source, out, workers=0 if scheduler else 1, scheduler=scheduler, sheet=3)
        assert alike(remote_tree(out)) == alike(tree(here)) and rows(out) == rows(here)
        sheet = remote_tree(storage_path(f"{bucket}/{number}/out-sheet"))
        assert sheet["contact_sheet-01.png"] == tree(here.with_name("out-sheet"))["contact_sheet-01.png"]
    # Some of it was lost, a poster that is not wanted any more lies there, and one that nobody may touch.
    (out / "t0001.jpg").unlink()
    shorter = storage_path(f"{bucket}/shorter.csv")
    shorter.write_text("".join(titled.csv.read_text().splitlines(keepends=True)[:-2]))  # neither t9999 nor t0011
    shorter_source = Source(source.images, shorter, {}, {})
    result = run_clean(shorter_source, out)
    assert result.cleaned_now == 4 + 3  # the chunk with the lost one, and the one that has changed
    assert set(remote_tree(out)) == set(tree(here)) - {"t0011.jpg"}
    foreign = storage_path(f"{bucket}/foreign")
    (foreign / "mine.jpg").write_bytes(b"mine")
    with fails("path-exists", foreign, "`posters clean`", "--out"):
        run_clean(source, foreign)
    assert set(remote_tree(foreign)) == {"mine.jpg"}


def test_a_bug_in_a_detector_rejects_its_poster_alone(
    cluster: Cluster, titled: Source, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    broken.touch()
    options = {"text": FRAGILE, "workers": 0, "scheduler": str(cluster.file)}
    run_clean(titled, out, **options)
    (failed,) = (row for row in read_csv(out / "rejected.csv") if row["reason"] == "cannot be cleaned")
    assert "a bug in the detector" in failed["detail"]
    finished = {name for name in tree(out) if name.endswith(".jpg")}
    assert len(finished) == 11 and f"{failed['id']}.jpg" not in finished
    others = finished - {f"t{number:04d}.jpg" for number in (4, 5, 6, 7)}  # of other chunks
    before = {name: (out / name).stat().st_mtime_ns for name in others}
    broken.unlink()
    assert run_clean(titled, out, **options).cleaned_now == 4
    assert before == {name: (out / name).stat().st_mtime_ns for name in others}
    monkeypatch.setenv(BROKEN, str(broken))
    run_clean(titled, tmp_path / "here", text=FRAGILE)
    assert alike(tree(out)) == alike(tree(tmp_path / "here")) and rows(out) == rows(tmp_path / "here")


def test_text_removal_on_the_way_into_shards(cluster: Cluster, titled: Source, tmp_path: Path) -> None:
    text = TextRemoval(QUICK)
    build(titled, tmp_path / "here", text=text, samples_per_shard=4)
    build(titled, tmp_path / "there", text=text, samples_per_shard=4, workers=0, scheduler=str(cluster.file))
    here, there = ({n: d for n, d in tree(tmp_path / f).items() if "clean" not in n} for f in ("here", "there"))
    assert here == there and len(here) > 8
    assert rows(tmp_path / "here") == rows(tmp_path / "there")


def test_the_command(cluster: Cluster, titled: Source, bucket: str) -> None:
    source, out = at_url(titled, bucket), f"{bucket}/cleaned"
    command = ("clean", "--images", source.images, "--metadata", source.csv, "--out", out, "--scales", 256)
    done = posters(*command, "--executor", "dask", "--scheduler", cluster.file)
    assert done.returncode == 0, done.stderr
    assert "on 2 processes" in done.stdout and f"look at    {out}-sheet/contact_sheet.html" in done.stdout
    done = posters(*command[:6], bucket, *command[7:])
    assert done.returncode == 2 and "needs a folder in the bucket" in only_error(done.stderr)


def test_other_tools_on_a_worker_are_refused(titled: Source, tmp_path: Path) -> None:
    options = CleanOptions(images=titled.images, metadata=titled.csv, out=tmp_path, text=FRAGILE)
    task = CleanTask(options, (("t0000", "", "t0000.jpg"),), "another", tmp_path / "a.json")
    with fails("ranks-differ", socket.gethostname()):
        clean_chunk(task)
