"""`posters app` as other web pages, impatient people and closed terminals meet it; without a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from forked import run_forked
from toolkit_helpers import ROOT, clean_env, free_port, make_model_folder

from shards.dataset.labels import LabelSet
from toolkit.app.guard import PER_CLIENT
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction.files import predict_files

pytest.importorskip("gradio")


class Server:
    def __init__(self, model: Path, work: Path, *options: str) -> None:
        self.port, self.work = free_port(), work
        # With GRADIO_IS_E2E_TEST, the state of a closed page is kept for a second instead of an hour.
        environment = clean_env() | {"TMPDIR": str(work), "PYTHONPATH": str(ROOT), "GRADIO_IS_E2E_TEST": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit", "app", "-m", str(model), "--no-text", "--port", str(self.port), *options],
            stdout=subprocess.PIPE, stderr=(work / "stderr.txt").open("w"), text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def uploads(self) -> list[Path]:
        return [path for path in self.work.glob("posters-app-*/**/*") if path.is_file()]

    def folders(self) -> list[Path]:
        return list(self.work.glob("posters-app-*"))

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def upload(self, data: bytes, **headers: str) -> tuple[int, str]:
        body = b"\r\n".join(
            [b"--x", b'Content-Disposition: form-data; name="files"; filename="a.jpg"', b"", data, b"--x--", b""]
        )
        return self.send("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x", **headers)


@pytest.fixture(scope="module")
def model(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("app") / "model", labels, HeadSpec("linear", (), 0.0), size=64)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("server")
    (work / "posters-app-4194999-left").mkdir()  # of a process that was killed; Linux counts to 4194304
    server = Server(model, work, "--root-path", "https://example.org/posters")
    try:
        assert server.process.stdout is not None
        assert str(server.port) in server.process.stdout.readline(), (work / "stderr.txt").read_text()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def test_what_a_killed_program_left_is_gone(server: Server):
    assert [folder.name.split("-")[2] for folder in server.folders()] == [str(server.process.pid)]


def test_other_pages_store_nothing(server: Server):
    assert server.upload(b"x" * 1000, Origin="https://evil.example")[0] == 403
    assert server.upload(b"x" * 1000, Origin="null")[0] == 403
    assert server.upload(b"x" * 1000, Host="evil.example")[0] == 403
    assert not server.uploads()


def test_the_page_itself_and_its_proxy_do(server: Server):
    assert server.upload(b"x" * 1000, Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    assert server.upload(b"y" * 1000, Host="example.org", Origin="https://example.org")[0] == 200
    assert server.send("GET", "/config", Host="example.org")[0] == 200
    assert "https://example.org/posters" in server.send("GET", "/config", Host="example.org")[1]
    assert len(server.uploads()) >= 2


def test_no_more_than_the_quota(server: Server):
    status, said = server.send("POST", "/gradio_api/upload", Content_Length=str(PER_CLIENT + 1))
    assert status == 413 and "too much at a time" in said


def test_routes_that_the_page_does_not_use_are_not_there(server: Server):
    for path in ("/gradio_api/deep_link?session_hash=x", "/gradio_api/proxy=http://127.0.0.1:1/"):
        assert server.send("GET", path)[0] == 404


def event(server: Server, name: str, data: list[Any], sent: Any = None, visitor: str = "x") -> dict[str, Any]:
    """Send an event by hand, as another program than the page can. Return its last message."""
    events = json.loads(server.send("GET", "/config")[1])["dependencies"]
    number = next(event["id"] for event in events if event["api_name"] == name)
    body = json.dumps({"data": data, "event_data": sent, "fn_index": number, "session_hash": visitor}).encode()
    assert server.send("POST", "/gradio_api/queue/join", body, Content_Type="application/json")[0] == 200
    messages = server.send("GET", f"/gradio_api/queue/data?session_hash={visitor}")[1].split("data: ")[1:]
    return next(each for each in map(json.loads, messages) if each["msg"] == "process_completed")


def refusal(server: Server, name: str, data: list[Any], sent: Any = None) -> str:
    """Return the message for the visitor."""
    done = event(server, name, data, sent)
    assert not done["success"]
    return done["output"]["error"]


def test_what_visitors_send_does_not_steer_the_terminal(server: Server):
    file = {"path": "/etc/\x1b[2Jpasswd", "meta": {"_type": "gradio.FileData"}}
    assert "does not fit this page" in refusal(server, "take", [[file], None])
    said = (server.work / "stderr.txt").read_text()
    assert "\x1b" not in said and r"/etc/\x1b[2Jpasswd" in said


@pytest.mark.parametrize(
    ("name", "data", "sent", "said"),
    [
        ("set_threshold", [None], {"index": 0, "value": float("nan")}, "a threshold must be from 0 to 1, not nan"),
        ("set_threshold", [None], {"index": True, "value": 0.5}, "a threshold needs the number of a label"),
        ("set_threshold", [None], None, "a threshold needs the number of a label"),
        ("pick", [None], {"index": 3, "value": "<b>"}, "the table has no row with the number 3"),
        ("pick", [None], [1], "the table has no row with the number None"),
        ("pick", [None], {"index": "<b>"}, "the table has no row with the number <b>"),
        ("correct", [None, ["no label"]], None, "Value: 'no label'"),
        ("correct", [None, 5], None, "does not fit this page"),
        ("look", [None], None, "does not fit this page"),  # a value too few
        ("predict", ["x"], None, "must be a list of files"),
        ("predict", [[5]], None, "must be a list of files"),
    ],
)
def test_an_event_sent_by_hand_is_refused_in_one_line(server: Server, name: str, data: list[Any], sent: Any, said: str):
    shown = refusal(server, name, data, sent)
    message = unescape(shown)
    assert "<" not in shown and said in message and "\n" not in message and len(message) <= 200


def test_the_downloads_of_a_closed_page_are_deleted(server: Server):
    assert event(server, "partial", [None], visitor="closed")["success"]  # a click on the first sample
    assert {path.suffix for path in server.uploads() if "downloads-" in str(path)} == {".csv", ".json", ".parquet"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/gradio_api/heartbeat/closed")
    connection.getresponse().read(1)
    connection.close()
    end = time.monotonic() + 20
    while (left := list(server.work.glob("posters-app-*/downloads-*"))) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def test_another_program_can_ask_for_predictions(server: Server, model: Path, posters: Path):
    images = [(posters / "images" / name).read_bytes() for name in ("p00003.jpg", "bad_truncated.jpg")]
    paths = [json.loads(server.upload(image)[1])[0] for image in images]
    call = "/gradio_api/call/predict"

    def ask(paths: list[str]) -> str:
        given = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        body = json.dumps({"data": [given]}).encode()
        status, answer = server.send("POST", call, body, Content_Type="application/json")
        assert status == 200, answer
        return server.send("GET", f"{call}/{json.loads(answer)['event_id']}")[1]

    said = ask(paths)
    assert said.startswith("event: complete"), said
    poster, broken = json.loads(said.partition("data: ")[2])[0]
    folder = load_model_folder(model)
    rows = predict_files(folder, [posters / "images" / "p00003.jpg"], make_accelerator(None))
    (expected,), (named,) = rows.probabilities, rows.names()
    assert poster["probabilities"] == pytest.approx(dict(zip(folder.labels.genres, expected, strict=True)), abs=2e-5)
    assert (
        poster["genres"] == named
        and poster["error"] is None
        and broken["probabilities"] is None
        and "truncated" in broken["error"]
    )
    assert ask([]).startswith("event: complete\ndata: [[]]")
    for strange in ("/etc/passwd", ""):  # not uploaded
        assert 'event: error\ndata: {"error": "The data must be a list of files' in ask([strange])
    gone = str(Path(paths[0]).with_name("gone.jpg"))
    answer = json.loads(ask([gone]).partition("data: ")[2])[0][0]
    assert answer["error"] == "the file cannot be read (No such file or directory); upload it again"  # without a path
    for other in ("take", "correct"):  # events of the page
        assert server.send("POST", f"/gradio_api/call/{other}", b"{}", Content_Type="application/json")[0] == 405


def test_a_closed_terminal_takes_the_uploads_along(server: Server):
    """The last test of this server. One upload is under way, and would be stored after its end."""
    assert server.uploads()
    begun = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    begun.putrequest("POST", "/gradio_api/upload")
    for name, value in (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", "100000")):
        begun.putheader(name, value)
    begun.endheaders(b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\nabc')
    time.sleep(0.5)
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 4
    while server.folders() and time.monotonic() < end:
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        begun.send(b"a" * (100000 - 67 - 8) + b"\r\n--x--\r\n")
    begun.close()
    assert server.process.wait(timeout=20) == 0
    assert not server.folders()
    assert "Traceback" not in (server.work / "stderr.txt").read_text()


def test_a_signal_at_start_up_leaves_nothing(model: Path, tmp_path: Path):
    server = Server(model, tmp_path)
    try:
        end = time.monotonic() + 60
        while not server.folders() and time.monotonic() < end:
            time.sleep(0.02)
        assert server.folders()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        server.process.kill()
        server.process.wait()
    assert not server.folders()
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


SECOND = """
import os, signal, time
from toolkit.app.server import _upload_folder
with _upload_folder() as folder:
    (folder / "a.jpg").write_bytes(b"a")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        os.kill(os.getpid(), signal.SIGINT)  # while the program is ending
        time.sleep(30)
"""


def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    (script := tmp_path / "second.py").write_text(SECOND)
    done = run_forked([script], [clean_env() | {"TMPDIR": str(tmp_path)}], 60)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert not list(tmp_path.glob("posters-app-*"))


def test_folders_of_running_programs_and_links_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from toolkit.app import server as app

    monkeypatch.setattr(app.tempfile, "gettempdir", lambda: str(tmp_path))
    (kept := tmp_path / "kept").mkdir()
    (kept / "a").write_text("a")
    (tmp_path / f"posters-app-{os.getpid()}-x").mkdir()
    (tmp_path / "posters-app-4194999-link").symlink_to(kept)
    (tmp_path / "posters-app-4194999-gone").mkdir()
    (tmp_path / "posters-app-notes-x").mkdir()
    app._delete_old_folders()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"kept", f"posters-app-{os.getpid()}-x", "posters-app-4194999-link", "posters-app-notes-x"}
    assert (kept / "a").exists()
