"""What tests of the node's cache share: files on a server, a cache, and processes of their own that have it too."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

from misbehaving_server import Handler, MisbehavingServer, in_turn, reply
from shard_tools import ROOT, environment

from shards.dataset.cache import Cache
from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.errors import UserError  # noqa: F401  # for code that runs in other processes
from shards.storage.paths import storage_path

SIZE = 10_000
PATIENCE = 6.0  # of other processes, seconds


def body(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def file_at(address: str, number: int) -> RemoteFile:
    """A file of a server as a manifest names it."""
    url = f"{address}/train-{number:05d}.tar"
    return RemoteFile(storage_path(url), SIZE, hashlib.sha256(body(number)).hexdigest())


def remote(server: MisbehavingServer, number: int, *handlers: Handler) -> RemoteFile:
    """The same, served: whole, or as the handlers do in turn."""
    server.add(f"/train-{number:05d}.tar", in_turn(*handlers) if handlers else reply(body(number)))
    return file_at(server.url(""), number)


def cache(folder: Path, limit: int = 0, patience: float = 20.0) -> Cache:
    return Cache(CacheOptions(folder, limit, patience))


def content(kept: Cache, file: RemoteFile) -> bytes:
    descriptor = kept.open(file)
    try:
        return os.pread(descriptor, SIZE + 1, 0)
    finally:
        os.close(descriptor)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".room"}


def start(code: str, folder: Path, limit: int, address: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that waits for ``go``, then runs ``code``: it has ``kept``, a cache, and ``remote(number)``."""
    head = """
        import random, sys
        from concurrent.futures import ThreadPoolExecutor
        from functools import partial
        from pathlib import Path
        import cache_tools, shards.storage.retrying_read
        from cache_tools import body
        shards.storage.retrying_read.PAUSES = (0.01, 0.05)
        kept = cache_tools.cache(Path(sys.argv[1]), int(sys.argv[2]), cache_tools.PATIENCE)
        remote, content = partial(cache_tools.file_at, sys.argv[3]), partial(cache_tools.content, kept)
        print("ready", flush=True)
        sys.stdin.readline()
    """
    here = Path(__file__).parent
    return subprocess.Popen(
        [
            *(sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)),
            *map(str, (folder, limit, address, *arguments)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(map(str, (ROOT, here, here.parent)))),
    )


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
