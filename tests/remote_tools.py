"""A real S3 server on loopback (moto's), for whatever reads or writes URLs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

#: Where botocore, and with it s3fs, finds the server and how it signs: child processes inherit it.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve S3 while the block runs, and point this process and its children at it. Gives the address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    wanted = {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # clients of an earlier server's address
    try:
        yield address
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


def new_bucket() -> str:
    """``s3://NAME`` of a fresh bucket on the server."""
    name = f"posters-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
