"""Which requests the page of `posters app` answers, and how much may be uploaded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from failing import fails

from toolkit.app import guard as app_guard
from toolkit.app.guard import Guard, check_root

HOME = "127.0.0.1:7860"


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def ask(
    guard: Guard, method: str, path: str, client: str = "127.0.0.1", pieces: Sequence[bytes] = (), **headers: str
) -> tuple[int, str]:
    """(status, body) of a request."""
    given = {"host": HOME, "content-length": "10"} | {n.replace("_", "-"): v for n, v in headers.items()}
    scope = {
        "type": "http", "method": method, "path": path, "client": (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    body = iter(pieces)

    async def receive() -> Any:
        for piece in body:
            return {"type": "http.request", "body": piece}
        raise AssertionError("the body of a refused request is not read")

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


UPLOAD = "/gradio_api/upload"
FOREIGN = "requests of other web pages are refused; for a proxy, start the page with --root-path https://NAME/"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOME, 200), ("localhost:7860", 200), ("[::1]:7860", 200), ("127.0.0.2", 200),
        ("evil.example:7860", 403), ("127.0.0.1.evil.example", 403), ("192.168.1.7:7860", 403), ("", 403), ("[", 403),
    ],
)  # fmt: skip
def test_only_this_machines_names(host: str, status: int):
    found, said = ask(Guard(_page, "127.0.0.1"), "GET", "/", host=host)
    assert found == status and (found == 200 or said.startswith("the page is not served under this name; "))


def test_a_page_for_other_machines_has_their_addresses_but_no_foreign_name():
    guard = Guard(_page, "0.0.0.0")
    assert ask(guard, "GET", "/", host="192.168.1.7:7860")[0] == 200
    assert ask(guard, "GET", "/", host="evil.example:7860")[0] == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (f"http://{HOME}", 200), (f"https://{HOME}", 200), ("", 200),
        ("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:8000", 403), ("http://127.0.0.1", 403),
        ("http://[", 403), (f"http://{HOME}@evil.example", 403), (f"http://{HOME}.evil.example", 403),
    ],
)  # fmt: skip
def test_other_pages_change_nothing(origin: str, status: int):
    guard = Guard(_page, "127.0.0.1")
    for path in (UPLOAD, "/gradio_api/queue/join"):
        found, said = ask(guard, "POST", path, origin=origin)
        assert found == status and (found == 200 or said.startswith(FOREIGN))


def test_behind_a_proxy():
    guard = Guard(_page, "127.0.0.1", "https://example.org/posters")
    proxied = ask(guard, "POST", f"/posters{UPLOAD}", host="example.org", origin="https://example.org")
    assert proxied[0] == 200
    assert ask(guard, "POST", UPLOAD, host=HOME, origin="https://example.org")[0] == 200  # Host is not passed on
    assert ask(guard, "POST", UPLOAD, host="example.org", origin="https://evil.example")[0] == 403
    assert ask(guard, "POST", UPLOAD, host="evil.example", origin="https://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/deep_link"), ("GET", "/gradio_api/proxy=http://127.0.0.1/x"),
        ("GET", "/gradio_api/call/x"),
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/process_recording"), ("POST", "/login"),
        ("POST", "/gradio_api/run/predict"), ("POST", "/gradio_api/run-history/connect"), ("PUT", UPLOAD),
        ("DELETE", "/"), ("OPTIONS", UPLOAD),
    ],
)  # fmt: skip
def test_what_the_page_does_not_use_is_not_there(method: str, path: str):
    assert ask(Guard(_page, "127.0.0.1"), method, path)[0] in (404, 405)


def test_quotas_of_one_and_of_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app_guard, "PER_CLIENT", 100)
    monkeypatch.setattr(app_guard, "IN_ALL", 250)
    now = [0.0]
    monkeypatch.setattr(app_guard.time, "monotonic", lambda: now[0])
    guard = Guard(_page, "0.0.0.0")
    assert ask(guard, "POST", UPLOAD, content_length="101")[0] == 413  # counts for nothing
    assert [ask(guard, "POST", UPLOAD, content_length="50")[0] for _ in range(3)] == [200, 200, 413]
    assert ask(guard, "POST", UPLOAD, "10.0.0.2", content_length="100")[0] == 200
    status, said = ask(guard, "POST", UPLOAD, "10.0.0.3", content_length="51")
    assert status == 413 and said.startswith("too much at a time: ")
    assert said.endswith("MB for all visitors; upload fewer or smaller files, or wait\n")
    assert ask(guard, "POST", UPLOAD, "10.0.0.3", content_length="50")[0] == 200
    now[0] = app_guard.QUOTA_SECONDS + 1  # the files are gone
    assert ask(guard, "POST", UPLOAD, content_length="100")[0] == 200


def test_many_small_files_are_no_way_round_the_quota(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app_guard, "PER_CLIENT", 10 * app_guard.FILE_OVERHEAD)
    pieces = [b"--x\r\nContent-Disposition: form-data; FILEN", b'AME="a"\r\n\r\n1\r\n', b'filename="b"' * 9, b""]

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["body"]:
            pass
        await _page(scope, receive, send)

    guard = Guard(reads, "127.0.0.1")
    assert ask(guard, "POST", UPLOAD, pieces=pieces)[0] == 200
    assert ask(guard, "POST", UPLOAD)[0] == 413
    assert ask(guard, "POST", UPLOAD, "10.0.0.2", pieces=[b""])[0] == 200


@pytest.mark.parametrize(("length", "status"), [("", 411), ("-5", 411), ("1e9", 411), (str(2**20 + 1), 413)])
def test_lengths_are_said(length: str, status: int):
    guard = Guard(_page, "127.0.0.1")
    assert ask(guard, "POST", "/gradio_api/queue/join", content_length=length)[0] == status


@pytest.mark.parametrize("root", ["posters", "ftp://example.org/x", "//example.org", "https://", "example.org/x"])
def test_a_root_path_that_is_none(root: str):
    with fails("option-value", "--root-path", "/posters", "https://example.org/posters", repr(root)):
        check_root(root)


def test_root_paths():
    roots = ["", "/", "/posters/", "https://example.org/posters/"]
    assert [check_root(root) for root in roots] == ["", "", "/posters", "https://example.org/posters"]
