"""`posters app` in a real browser, where there is one: what is dropped, what is read, and whom the page asks."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from browser_tools import LACKING, axe, printed_words, started
from PIL import Image
from toolkit_helpers import ROOT, clean_env, free_port, make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from toolkit.app.decoder import MAX_MB
from toolkit.data.sources.shard_set import ShardSet
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction.files import predict_files

pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)

#: Notes every address that the server's Python asks for, or connects to.
WITNESS = """
import sys
def _note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open({path!r}, "a") as stream:
            family = args[0].family.name if event == "socket.connect" else ""
            print(event, family, *args[-1:] if event == "socket.connect" else args[:1], file=stream)
sys.addaudithook(_note)
"""


@pytest.fixture(scope="module")
def model(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with a head on two stages, maps of 3x3, and thresholds of its own for every genre."""
    folder = tmp_path_factory.mktemp("app") / "model"
    head = HeadSpec("levels", (), 0.0)
    return make_model_folder(folder, labels, head, size=96, decisions=some_decisions(len(labels)))


class Server:
    """A running `posters app`."""

    def __init__(self, model: Path, work: Path, shards: Path) -> None:
        self.address, self.witness = f"http://127.0.0.1:{(port := free_port())}", work / "asked.txt"
        (work / "sitecustomize.py").write_text(WITNESS.format(path=str(self.witness)))
        environment = clean_env() | {"PYTHONPATH": f"{work}{os.pathsep}{ROOT}", "TMPDIR": str(work)}
        options = ["--model", str(model), "--port", str(port), "--shards", str(shards), "--split", "train"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit", "app", *options],
            stdout=subprocess.PIPE, stderr=(work / "stderr.txt").open("w"), text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()


@pytest.fixture(scope="module")
def server(model: Path, shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("server")
    server = Server(model, work, shard_set)
    try:
        assert server.address in server.said, (work / "stderr.txt").read_text()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page:
    """The page in the browser, seen as by a visitor."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.browser = browser
        self.resize(width)
        browser.get(address)

    def resize(self, width: int) -> None:
        """Chromium's own windows are never narrower than 500 pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def wait(self, css: str, seconds: float = 30) -> Any:
        """The first element, when it is there."""
        return until(lambda: next(iter(self.all(css)), None), f"{css} in {self.text()}", seconds)

    def text(self) -> str:
        return self.browser.execute_script("return document.body.innerText")

    def drop(self, *files: Path) -> None:
        self.wait("#upload input[type=file]").send_keys("\n".join(map(str, files)))

    def probabilities(self, table: str = "#genres", value: str = "probability") -> dict[str, float]:
        rows = self.browser.execute_script(
            f"return [...document.querySelectorAll('{table} tbody tr')].map(r => [r.dataset.genre, r.dataset.{value}])"
        )
        return {genre: float(number) for genre, number in rows}

    def column(self, table: str, number: int) -> list[str]:
        """The texts of a column, counted from 1."""
        return [cell.text for cell in self.all(f"{table} tbody td:nth-child({number})")]

    def move(self, css: str, value: float) -> None:
        """Move a slider as a mouse does."""
        self.browser.execute_script(
            "const [slider, value] = arguments; slider.value = value;"
            "for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind, {bubbles: true}))",
            self.wait(css), value,
        )  # fmt: skip

    def heat_map(self) -> np.ndarray:
        source = self.wait("#heat img[alt^='heat map']").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))


def until(look: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"after {seconds:g} s there is no {what}")


def bomb(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_the_page_says_what_predict_says(server: Server, browser: Any, model: Path, posters: Path):
    path = posters / "images" / "p00003.jpg"
    page = Page(browser, server.address)
    page.drop(path)
    page.wait("#genres")
    shown = page.probabilities()
    folder = load_model_folder(model)
    (expected,) = predict_files(folder, [path], make_accelerator(None)).probabilities
    assert shown == pytest.approx(dict(zip(folder.labels.genres, expected, strict=True)), abs=2e-5)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    thresholds = dict(zip(folder.labels.genres, folder.thresholds, strict=True))
    named = {row.get_attribute("data-genre") for row in page.all("#genres tr.named")}
    assert named == {genre for genre, p in shown.items() if p >= thresholds[genre]}

    page.wait("#text table", 60)  # comes by itself, later
    without = page.probabilities("#text", "without")
    assert without.keys() == shown.keys() and without != shown
    assert "of the poster was detected as text" in page.text()


def test_a_click_on_a_sample_poster_shows_its_genres(server: Server, browser: Any, model: Path):
    page = Page(browser, server.address, 390)
    page.wait("#sample-2").click()
    assert page.wait("#genres h2").text == "sample 2.jpg"
    assert page.wait("#heat").location["y"] < page.wait("#genres").location["y"]  # a phone shows the heat map first
    assert "posters evaluate" in page.text()  # this model has no metrics file


def test_another_genre_has_another_heat_map(server: Server, browser: Any, posters: Path):
    page = Page(browser, server.address)
    page.drop(posters / "images" / "p00003.jpg")
    first = page.heat_map()
    chosen = page.wait("#heat").get_attribute("data-genre")
    other = next(genre for genre in page.probabilities() if genre != chosen)
    page.wait("#genre input").click()
    until(lambda: [o for o in page.all("#genre [role=option]") if other in o.text], f"option {other}")
    option = next(o for o in page.all("#genre [role=option]") if other in o.text)
    option.click()
    page.wait(f"#heat[data-genre='{other}']")
    second = page.heat_map()
    assert second.shape == first.shape and np.abs(second.astype(int) - first).max() > 30


def test_what_is_no_poster_says_so_and_the_others_go_on(server: Server, browser: Any, posters: Path, tmp_path: Path):
    images = posters / "images"
    (hostile := tmp_path / "<b id=injected>.jpg").write_bytes(b"no picture")
    page = Page(browser, server.address)
    page.drop(
        images / "p00001.jpg", images / "bad_truncated.jpg", bomb(tmp_path / "bomb.png"), hostile,
        images / "p00002.jpg",
    )  # fmt: skip
    page.wait("#genres")
    said = [line.text for line in page.all("#refused .bad")]
    assert [line.split(":")[0] for line in said[:2]] == ["bad_truncated.jpg", "bomb.png"] and len(said) == 3
    assert "truncated" in said[0] and "decompression bomb" in said[1] and "not an image" in said[2]
    assert not page.all("#injected")

    assert page.wait("#genres h2").text == "p00001.jpg"  # of two that can be chosen
    page.drop(images / "p00003.jpg")  # a second time
    until(lambda: page.wait("#genres h2").text == "p00003.jpg", "third poster")
    names = page.all("#uploads tr[data-row] button")
    assert [name.text for name in names] == ["p00001.jpg", "p00002.jpg", "p00003.jpg"]
    names[1].send_keys(Keys.ENTER)  # with the keyboard
    until(lambda: page.wait("#genres h2").text == "p00002.jpg", "second poster")
    assert page.wait("#uploads tr[aria-current]").get_attribute("data-row") == "1"


def test_a_moved_threshold_changes_every_answer_and_can_be_taken_home(
    server: Server, browser: Any, model: Path, posters: Path, tmp_path: Path
):
    page = Page(browser, server.address)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.drop(posters / "images" / "p00001.jpg", posters / "images" / "p00002.jpg")
    page.wait("#genres")
    page.move("#genres .all input", 1.0)
    assert "No genre reaches its threshold" in page.wait("#named").text  # at once
    until(lambda: page.column("#uploads", 3) == ["none", "none"], "table without names")
    top = page.wait("#genres tbody tr").get_attribute("data-genre")
    page.move("#genres tbody tr input", 0.0)
    assert page.wait("#named").text.startswith(f"Named: {top}")
    until(lambda: page.column("#uploads", 3) == [top, top], "table with one name")
    until(lambda: page.all("#labels"), "button").pop().click()
    path = tmp_path / "labels.json"
    until(path.exists, "labels.json")
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    shutil.copy(path, copy)
    thresholds = dict(zip((labels := load_model_folder(copy)).labels.genres, labels.thresholds, strict=True))
    assert thresholds == {genre: float(genre != top) for genre in thresholds}
    page.wait("#csv").click()
    table = until(lambda: (tmp_path / "predictions.csv").exists(), "CSV") and pd.read_csv(tmp_path / "predictions.csv")
    assert table["image"].tolist() == ["p00001.jpg", "p00002.jpg"] and table["genres"].tolist() == [top, top]
    page.wait("[data-reset]").click()
    until(lambda: not page.all("#labels"), "no new thresholds")


def test_wrong_genres_are_corrected_into_a_table(server: Server, browser: Any, posters: Path, tmp_path: Path):
    page = Page(browser, server.address)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.drop(posters / "images" / "p00001.jpg")
    named = set(page.wait("#named").text.removeprefix("Named: ").split(", "))
    page.wait("#wrong button").click()
    boxes = until(lambda: page.all("#ticked input"), "boxes")
    ticked = [box for box in boxes if box.is_selected()]
    assert len(ticked) == len(named)
    for box in ticked:
        box.click()
    page.wait("#keep").click()
    until(lambda: "at least one" in page.wait("#kept").text, "refusal")
    boxes[0].click()
    page.wait("#keep").click()
    until(lambda: page.all("#corrections"), "button").pop().click()
    path = tmp_path / "corrections.csv"
    until(path.exists, "corrections.csv")
    genre = page.all("#ticked label")[0].text
    assert path.read_text().split() == ["id,genres", f"p00001,{genre}"]
    assert f"corrected: {genre}" in page.wait("#uploads").text


def test_the_gallery_filters_and_opens_posters(server: Server, browser: Any, shard_set: Path):
    page = Page(browser, server.address)
    frame = ShardSet(shard_set, "train").to_pandas()
    cards = until(lambda: page.all("#gallery .shelf [data-row]"), "posters")
    assert len(cards) == min(60, len(frame))
    assert page.wait("#gallery .id").text == frame["id"][0]
    cards[1].click()
    assert page.wait("#genres h2").text == frame["id"][1]
    assert f"In the shard set: {', '.join(frame['genres'][1])}." in page.text()
    genre = frame["genres"][1][0]
    page.wait("#true input").click()
    until(lambda: [o for o in page.all("#true [role=option]") if o.text.strip().endswith(genre)], genre).pop().click()
    count = sum(genre in genres for genres in frame["genres"])
    until(lambda: f"of {count} (split train" in page.wait("#gallery .pager").text, f"{count} posters")


def test_the_client_of_gradio_is_answered(server: Server, browser: Any, model: Path, posters: Path):
    """With the lines that the page shows."""
    page = Page(browser, server.address)
    page.wait("#api summary").click()
    shown = page.wait("#api pre").text
    code = shown.replace("poster.jpg", str(posters / "images" / "p00003.jpg"))
    assert server.address in code
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=clean_env())
    assert said.returncode == 0, said.stderr
    (answer,) = ast.literal_eval(said.stdout.strip().splitlines()[-1])
    assert answer["image"] == "p00003.jpg" and answer["error"] is None
    assert answer["probabilities"].keys() == set(load_model_folder(model).labels.genres)


def test_what_is_too_large_is_not_taken(server: Server, browser: Any, tmp_path: Path):
    Image.new("RGB", (90, 120), "teal").save(tmp_path / "small.png")
    (large := tmp_path / "large.jpg").write_bytes(bytes(MAX_MB * 2**20 + 1))
    page = Page(browser, server.address)
    page.drop(large, tmp_path / "small.png")
    until(lambda: "exceed" in page.text() and "large.jpg" in page.text(), "message that names it")
    assert not page.all("#genres")


@pytest.mark.parametrize("width", [390, 1280])
def test_nobody_scrolls_sideways(server: Server, browser: Any, posters: Path, width: int):
    page = Page(browser, server.address, width)
    page.drop(*sorted((posters / "images").glob("p0000*.jpg")))
    page.wait("#text table", 60)
    page.wait("#wrong button").click()
    page.wait("#ticked label")
    sizes = "const page = document.documentElement; return [innerWidth, page.clientWidth, page.scrollWidth]"
    long = "for (const name of document.querySelectorAll('tbody th, #uploads td, #wrong label span, #named'))"
    for script in ("", f"{long} name.textContent = 'x'.repeat(120); "):  # also with a label without spaces
        inner, shown, whole = browser.execute_script(script + sizes)
        assert inner == width and whole == shown > width - 20  # a scroll bar's width at most


def asked(browser: Any) -> set[str]:
    """Hosts that pages have asked for since the last call."""
    urls = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            urls.append(message["params"]["url"])
    return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}


def test_answers_are_printed_without_the_controls(server: Server, browser: Any, posters: Path):
    page = Page(browser, server.address)
    page.drop(posters / "images" / "p00001.jpg", posters / "images" / "p00002.jpg")
    named = page.wait("#named").text
    words = printed_words(base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]))
    for text in ("Which genres does a poster show?", "p00001.jpg", "p00002.jpg", named, "no effect"):
        assert text in words
    assert "Empty the table" not in words and "Click to upload" not in words


def test_nobody_else_is_asked(server: Server, browser: Any, posters: Path):
    browser.get('data:text/html,<img src="http://poster.invalid/1.png">')
    until(lambda: "poster.invalid" in asked(browser), "request that would be seen")
    page = Page(browser, server.address)
    page.drop(posters / "images" / "p00003.jpg")
    page.wait("#text table", 60)
    assert asked(browser) == {urlsplit(server.address).netloc}
    lines = server.witness.read_text().splitlines()
    assert lines and all("127.0.0.1" in line or "localhost" in line or "AF_UNIX" in line for line in lines), lines


@pytest.mark.parametrize(("width", "colours"), [(390, "dark"), (1280, "light")])
def test_axe_finds_no_barriers(server: Server, browser: Any, posters: Path, width: int, colours: str):
    scheme = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page = Page(browser, server.address, width)
    page.wait("#sample-2")
    until(lambda: not page.all(".pending"), "answers of the server")  # what waits for one is pale
    assert axe(browser) == []
    page.drop(posters / "images" / "p00003.jpg")
    page.wait("#text table", 60)
    until(lambda: not page.all(".pending"), "answers of the server")
    assert axe(browser) == []


def test_it_ends_when_it_is_told_to_and_leaves_nothing(server: Server):
    """The last test: the server is gone then."""
    folder = server.witness.parent
    assert list(folder.glob("posters-app-*/**/*.jpg"))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert not list(folder.glob("posters-app-*"))
    errors = (folder / "stderr.txt").read_text()
    assert "Traceback" not in errors and "error" not in errors.lower(), errors
