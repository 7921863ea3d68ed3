"""A hub on this machine that speaks as much of Hugging Face's API as models and shards that lie there need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
SHA = "0123456789abcdef0123456789abcdef01234567"


def etag_of(data: bytes) -> str:
    """A file's version."""
    return hashlib.sha256(data).hexdigest()


class Hub:
    """What was asked, and what is stored."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        """Of the one repository."""
        self.objects: dict[str, bytes] = {}
        """Large files by sha256."""
        self.commits: list[dict[str, Any]] = []
        self.refusal: int | None = None
        """Status with which everything is answered."""
        self.url = ""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, path = self._begin()
        if self._refused():
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.hub.created.append(asked)
            self._json({"url": f"{self.hub.url}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".onnx")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()], path)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/branch/" in path:
            self._json({})
        elif "/paths-info/" in path:
            asked = parse_qs(body.decode())["paths"]
            self._json([self._entry(name) for name in asked if name in self.hub.files])
        else:
            self._json({"error": "unknown"}, 404)

    def do_PUT(self) -> None:
        body, path = self._begin()
        digest = path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != digest:
            return self._json({"error": "wrong sha256"}, 400)
        self.hub.objects[digest] = body
        self._json({})

    def do_GET(self) -> None:
        _, path = self._begin()
        if self._refused():
            return
        if "/resolve/" in path:
            return self._file(path.split("/resolve/", 1)[1].split("/", 1)[1], with_body=True)
        if path.startswith(("/api/models/", "/api/datasets/")):
            if not self.hub.files or path.endswith("/gone"):
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound" if self.hub.files else "RepoNotFound")
                return self._finish(b"{}")
            if "/tree/" in path:
                return self._json([self._entry(name) for name in self.hub.files])
            names = [{"rfilename": name} for name in self.hub.files]
            return self._json({"id": "user/name", "modelId": "user/name", "sha": SHA, "siblings": names})
        self._json({"error": "unknown"}, 404)

    def do_HEAD(self) -> None:
        _, path = self._begin()
        self._file(path.split("/resolve/", 1)[1].split("/", 1)[1], with_body=False)

    def _begin(self) -> tuple[bytes, str]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return body, path

    def _refused(self) -> bool:
        if self.hub.refusal is not None:
            self._json({"error": "no"}, self.hub.refusal)
            return True
        return False

    def _commit(self, lines: list[dict[str, Any]], path: str) -> None:
        header = next(line["value"] for line in lines if line["key"] == "header")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.commits.append({"branch": path.rsplit("/commit/", 1)[1], **header})
        self._json({"commitUrl": f"{self.hub.url}/user/name/commit/{SHA}", "commitOid": SHA})

    def _file(self, name: str, *, with_body: bool) -> None:
        data = self.hub.files.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            return self._finish(b"")
        wanted = self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        if wanted:
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("ETag", f'"{etag_of(data)}"')
        self.send_header("X-Repo-Commit", SHA)
        self._finish(data, with_body=with_body)

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.hub.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}

    def _json(self, value: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._finish(json.dumps(value).encode())

    def _finish(self, data: bytes, *, with_body: bool = True) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
