"""Shards at a URL: trained on, evaluated and predicted as if they were here, each fetched once per node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from hub_server import running_hub
from misbehaving_server import MisbehavingServer, in_turn, reply, reset, slowly
from safetensors.torch import load_file
from toolkit_helpers import ROOT, TINY, clean_env, error_lines, free_port, launch_2, posters_command, weights_option
from train_tools import tiny_config

from shards.dataset.cache_options import CacheOptions
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.store import RemoteShards, open_store
from shards.errors import UserError
from shards.storage.paths import storage_path
from toolkit.cli.main import main
from toolkit.config.schema import OnError
from toolkit.data.loader.faults import FaultPolicy
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import EvalPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import eval_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.training.batches import Feed, train_plan

EPOCHS = ["--train.epochs", "2", "--train.batch_size", "8", "--train.precision", "no"]
WINDOW = ["--data.order", "window", "--data.window", "1", "--data.prefetch", "1"]


@pytest.fixture(scope="module")
def local(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the set where it lies."""
    out = tmp_path_factory.mktemp("local") / "run"
    run = posters_command("train", *TINY, *EPOCHS, *WINDOW, "--shards", shard_set, "--out", out)
    assert run.returncode == 0, run.stderr
    return out


@pytest.fixture
def server(shard_set: Path) -> Iterator[MisbehavingServer]:
    """The set over HTTP, counting requests; every tar's line is cut the first time."""
    with MisbehavingServer() as running:
        for path in shard_set.iterdir():
            if path.is_file() and path.name != ".lock":
                good = reply(path.read_bytes())
                half = reply(path.read_bytes()[:3000], Content_Length=path.stat().st_size)
                running.add(f"/set/{path.name}", in_turn(half, good) if path.suffix == ".tar" else good)
        yield running


def assert_same_weights(run: Path, local: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, local))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def largest(shard_set: Path, count: int) -> int:
    sizes = sorted((shard.bytes for shard in Manifest.read(shard_set).of_split("train")), reverse=True)
    return sum(sizes[:count])


def test_s3_within_a_limit(shard_set: Path, local: Path, bucket: str, tmp_path: Path) -> None:
    """Two windows fit, the set does not: the same weights, bit for bit, from a cache that is never over its limit."""
    url = f"{bucket}/set"
    fsspec.filesystem("s3").put(f"{shard_set}/", f"{url}/", recursive=True)
    manifest = Manifest.read(shard_set)
    limit = largest(shard_set, 2)
    # Of validation and tables as well, which are small.
    limit += sum(table.bytes for table in manifest.tables.values())
    assert limit < sum(shard.bytes for shard in manifest.of_split("train"))
    cached = ["--cache-dir", tmp_path / "cache", "--cache-limit", limit]
    run = posters_command("train", *TINY, *EPOCHS, *WINDOW, "--shards", url, *cached, "--out", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    assert "over its limit" not in run.stderr and "credentials" not in run.stderr
    assert_same_weights(tmp_path / "run", local)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit + 4096

    for arguments in (
        ["evaluate", "--model", tmp_path / "run/model", "--out", tmp_path / "remote.json"],
        ["predict", "--model", tmp_path / "run/model", "--out", tmp_path / "remote"],
    ):
        assert main([str(word) for word in (*arguments, "--shards", url, *cached)]) == 0
    for arguments in (
        ["evaluate", "--model", local / "model", "--out", tmp_path / "local.json"],
        ["predict", "--model", local / "model", "--out", tmp_path / "local"],
    ):
        assert main([str(word) for word in (*arguments, "--shards", shard_set)]) == 0
    assert (tmp_path / "remote.json").read_text() == (tmp_path / "local.json").read_text()
    files = sorted(path.name for path in (tmp_path / "local").glob("*.parquet"))
    assert files
    for name in files:
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "remote" / name), pd.read_parquet(tmp_path / "local" / name)
        )


@pytest.mark.parametrize("where", ["url", "folder"])
def test_tars_elsewhere(shard_set: Path, local: Path, server: MisbehavingServer, tmp_path: Path, where: str) -> None:
    """The tars of a set are at a URL or in a read-only folder, and its other files in a folder: the same weights."""
    names = [shard.name for shard in Manifest.read(shard_set).shards]
    place = tuple(f"{server.url('/set')}/{name}" for name in names) if where == "url" else str(shard_set)
    out, cached = tmp_path / "set", ["--cache-dir", tmp_path / "cache"]
    assert main(["shards", "index", *([place] if isinstance(place, str) else place), "--out", str(out)]) == 0
    assert Manifest.read(out).fingerprint == Manifest.read(shard_set).fingerprint
    run = posters_command("train", *TINY, *EPOCHS, *WINDOW, "--shards", out, *cached, "--out", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    assert_same_weights(tmp_path / "run", local)
    model = ["--model", tmp_path / "run/model", "--shards", out, *cached]
    for arguments in (
        ["evaluate", *model, "--out", tmp_path / "ours.json"],
        ["predict", *model, "--out", tmp_path / "ours"],
        ["tune", *model],
    ):
        assert main([str(word) for word in arguments]) == 0
    model = ["--model", local / "model", "--shards", shard_set]
    for arguments in (
        ["evaluate", *model, "--out", tmp_path / "theirs.json"],
        ["predict", *model, "--out", tmp_path / "theirs"],
    ):
        assert main([str(word) for word in arguments]) == 0
    assert (tmp_path / "ours.json").read_text() == (tmp_path / "theirs.json").read_text()
    files = sorted(path.name for path in (tmp_path / "theirs").glob("*.parquet"))
    assert len(files) == len(names)
    for name in files:
        ours, theirs = (pd.read_parquet(tmp_path / folder / name) for folder in ("ours", "theirs"))
        pd.testing.assert_frame_equal(ours, theirs)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == (len(names) if where == "url" else 0)


def test_two_ranks_and_a_bad_network(shard_set: Path, local: Path, server: MisbehavingServer, tmp_path: Path) -> None:
    """Every tar is cut off once and comes once, however many ranks and epochs read it."""
    url = server.url("/set")
    run = launch_2(
        "launch/train.py",
        *[*TINY, *EPOCHS, *WINDOW, weights_option(), "--shards", url],
        *["--cache-dir", tmp_path / "cache", "--out", tmp_path / "run"],
    )
    assert run.returncode == 0, run.stderr
    manifest = Manifest.read(shard_set)
    for shard in manifest.shards:
        wanted = 0 if shard.split == "test" else 2
        assert server.requests[f"/set/{shard.name}"] == wanted, shard.name
    for name in ("train", "val"):
        assert server.requests[f"/set/{manifest.tables[name].name}"] == 1


def test_a_set_that_is_gone_is_one_line_and_goes_on_later(
    shard_set: Path, local: Path, server: MisbehavingServer, tmp_path: Path
) -> None:
    """The network stays cut in the middle of a run: a line; with the network back, --resume ends in the same bits."""
    missing = Manifest.read(shard_set).of_split("train")[-1].name
    whole = server.routes[f"/set/{missing}"]
    server.add(f"/set/{missing}", reset)
    command = [
        *["train", *TINY, *EPOCHS, *WINDOW, "--shards", server.url("/set"), "--cache-dir", tmp_path / "cache"],
        *["--train.checkpoint_steps", "1", "--out", tmp_path / "run"],
    ]
    run = posters_command(*command, "--remote-timeout", "1")
    assert run.returncode == 2
    (line,) = error_lines(run)
    assert missing in line and "cannot be read" in line and "check the network" in line
    assert "Traceback" not in run.stderr
    server.add(f"/set/{missing}", whole)
    run = posters_command(*command, "--resume")
    assert run.returncode == 0, run.stderr
    assert_same_weights(tmp_path / "run", local)


@pytest.mark.parametrize(
    ("url", "more", "words"),
    [
        ("SET", ["--cache-limit", "1kB"], ["data.order global", "--cache-limit", "data.order window"]),
        ("SET", [*WINDOW, "--cache-limit", "1kB"], ["windows of 1 shards", "--data.window"]),
        ("SET", ["--cache-limit", "much"], ["200GB", "'much'"]),
        ("SET", ["--remote-timeout", "-1"], ["--remote-timeout", "'-1'"]),
        ("SET/elsewhere", [], ["elsewhere", "has no manifest.json"]),
        ("SET-closed", ["--remote-timeout", "0.2"], ["manifest.json cannot be read", "network"]),
        ("nonsense://bucket/set", [], ["nonsense://bucket/set"]),
        pytest.param(
            *("gs://bucket/set", [], ["gs://", "'poster-toolkit[gs]'"]),
            marks=pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed"),
        ),
    ],
)
def test_bad_input_is_one_line(
    server: MisbehavingServer, tmp_path: Path, url: str, more: list[str], words: list[str]
) -> None:
    if url == "SET-closed":
        url = "http://127.0.0.1:9/set"
    url = url.replace("SET", server.url("/set"))
    out = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        main(["train", *TINY, "--shards", url, "--cache-dir", str(tmp_path / "c"), *more, "--out", str(out)])
    line = str(caught.value)
    assert all(word in line for word in words) and "\n" not in line, line
    assert not (out / "model").exists()


def test_a_reader_of_a_url(shard_set: Path, server: MisbehavingServer, tmp_path: Path) -> None:
    store = open_store(server.url("/set"), CacheOptions(tmp_path / "cache"))
    ours, theirs = ShardReader.of_split(store, "val"), ShardReader.of_split(shard_set, "val")
    assert ours.records.tobytes() == theirs.records.tobytes()
    assert ours.sample_ids() == theirs.sample_ids() and ours.key(0) == theirs.key(0)
    assert ours.where(0).startswith(server.url("/set/val-"))
    assert [ours.image_bytes(i) for i in range(len(ours))] == [theirs.image_bytes(i) for i in range(len(ours))]
    # The indexes are kept as well: a second reader asks for nothing but the manifest.
    before = dict(server.requests)
    again = ShardReader.of_split(open_store(server.url("/set"), CacheOptions(tmp_path / "cache")), "val")
    assert again.sample_ids() == theirs.sample_ids() and again.image_bytes(0) == theirs.image_bytes(0)
    changed = {path for path, count in server.requests.items() if before.get(path) != count}
    assert changed == {"/set/manifest.json"}


@pytest.mark.parametrize("on_error", ["replace", "mask"])
def test_a_cache_that_cannot_be_used_is_no_damaged_image(
    server: MisbehavingServer, tmp_path: Path, on_error: OnError
) -> None:
    store = open_store(server.url("/set"), CacheOptions(tmp_path / "cache"))
    reader = ShardReader.of_split(store, "train")
    preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    transforms = eval_transforms(reader, preprocessing, "cpu", torch.device("cpu"))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("somebody's file")
    with Loader(reader, 2, 2, policy=FaultPolicy(on_error, 1.0)) as loader:
        with pytest.raises(UserError, match=r"the cache .* cannot be used.*--cache-dir"):
            next(loader.batches(EvalPlan(len(reader), 8).micro_batches(0, 1), transforms))


def test_in_the_steady_state_nobody_waits_for_the_network(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow store, a cache of two windows, a step that takes longer than a shard: all but the first are there."""
    manifest = Manifest.read(shard_set)
    limit = largest(shard_set, 2) + sum(table.bytes for table in manifest.tables.values())
    with MisbehavingServer() as server:
        for path in shard_set.iterdir():
            if path.is_file():
                good = reply(path.read_bytes())
                server.add(f"/set/{path.name}", slowly(0.1, good) if path.suffix == ".tar" else good)
        store = open_store(server.url("/set"), CacheOptions(tmp_path / "cache", limit))
        assert isinstance(store, RemoteShards)
        there: list[bool] = []

        def open_tar(shard: Shard, stop: threading.Event) -> int:
            there.append((tmp_path / "cache" / f"{shard.sha256}.tar").exists())
            return RemoteShards.open_tar(store, shard, stop)

        monkeypatch.setattr(store, "open_tar", open_tar)
        config = tiny_config(*WINDOW, "--train.batch_size", "6")
        accelerator = Accelerator(cpu=True)
        train, val = (ShardReader.of_split(store, split, manifest) for split in ("train", "val"))
        plain = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
        parts: Any = SimpleNamespace(
            config=config, plan=train_plan(config, train), accumulation=1, train=train, val=val,
            preprocessing=plain, accelerator=accelerator,
        )  # fmt: skip
        feed = Feed(parts)
        seen = []
        for epoch in range(3):
            for batch in feed.batches(epoch, 0):
                seen += [(epoch, int(index)) for index in batch.micro_batch.indices]
                time.sleep(0.12)
        feed.close()
    assert len(seen) == len(set(seen)) == 3 * len(train)
    count = len(train.shards)
    assert len(there) > 2 * count >= 6
    assert there[0] is False and all(there[2:])
    assert "over its limit" not in caplog.text
    assert sum(server.requests[f"/set/{shard.name}"] for shard in train.shards) > count  # the limit was felt


@pytest.mark.long
def test_nodes_with_other_copies_of_the_set_are_told(shard_set: Path, tmp_path: Path) -> None:
    """Two ranks, each with a folder of its own; one of them is of another build."""
    other = shutil.copytree(shard_set, tmp_path / "other")
    raw = json.loads((other / "manifest.json").read_text())
    raw["shards"] = raw["shards"][1:]  # one shard less
    manifest = Manifest(raw["labels"]["genres"], [Shard(**shard) for shard in raw["shards"]])
    manifest.write_tables(other)
    manifest.write(other)
    port = str(free_port())
    ranks = []
    for rank, shards in enumerate((shard_set, other)):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = {**clean_env(), "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in where.items()}}
        command = [sys.executable, "launch/train.py", *TINY, "--shards", shards, "--out", tmp_path / "run"]
        words = [str(word) for word in command]
        ranks.append(subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for rank, process in enumerate(ranks):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        (line,) = [line for line in err.splitlines() if "error: " in line]
        assert "different shard sets" in line and str((shard_set, other)[rank]) in line
    assert not (tmp_path / "run").exists()


def test_shards_on_the_hub(shard_set: Path, tmp_path: Path) -> None:
    code = """
        import hashlib, sys
        from pathlib import Path
        from shards.dataset.cache_options import CacheOptions
        from shards.dataset.store import open_store
        from toolkit.data.sources.shard_reader import ShardReader
        at = open_store(sys.argv[1], CacheOptions(Path(sys.argv[2]), remote_timeout=5.0))
        for split in ("train", "test"):
            reader = ShardReader.of_split(at, split)
            print(reader.sample_ids(), [hashlib.sha256(reader.image_bytes(i)).hexdigest() for i in range(len(reader))])
    """
    with running_hub() as hub:
        hub.files = {f"set/{path.name}": path.read_bytes() for path in shard_set.iterdir() if path.is_file()}
        environment = {**clean_env(), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        said = [
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code), str(at), str(tmp_path / "cache")],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            for at in ("hf://datasets/user/name/set", shard_set)
        ]
    assert said[0].returncode == said[1].returncode == 0, said[0].stderr + said[1].stderr
    assert said[0].stdout == said[1].stdout and len(said[0].stdout) > 1000
    assert any("/datasets/user/name/resolve/" in request for request in hub.requests)


def test_tars_on_the_hub(shard_set: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        hub.files = {f"set/{path.name}": path.read_bytes() for path in shard_set.glob("*.tar")}
        environment = {**clean_env(), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        for command in (
            ["index", "hf://datasets/user/name/set", "--out", tmp_path / "set"],
            ["verify", tmp_path / "set", "--cache-dir", tmp_path / "cache"],
        ):
            words = [sys.executable, "-m", "toolkit", "shards", *map(str, command), "--workers", "1"]
            done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert Manifest.read(tmp_path / "set").fingerprint == Manifest.read(shard_set).fingerprint


def test_a_set_at_a_url_is_described_but_verified_in_a_folder(
    server: MisbehavingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "info", server.url("/set")]) == 0
    assert Manifest.read(storage_path(server.url("/set"))).fingerprint in capsys.readouterr().out
    with pytest.raises(UserError, match="copy the set to a folder first"):
        main(["shards", "verify", server.url("/set")])
