"""Images at URLs: predicted like files, with the rules of `posters fetch` for addresses, sizes and times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from failing import fails
from misbehaving_server import MisbehavingServer, closed_port, drip, endless, redirect, reply

import toolkit
from shards.fetch.options import FetchOptions
from toolkit.cli.main import main
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_urls import ImageUrl, image_places


@pytest.fixture(scope="module")
def server(posters: Path) -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        running.add("/p.jpg?token=secret", reply((posters / "images" / "p00000.jpg").read_bytes()))
        running.add("/moved.jpg", redirect(running.url("/p.jpg?token=secret")))
        running.add("/away.jpg", redirect("ftp://127.0.0.1/x.jpg"))
        running.add("/page.jpg", reply(b"<html>not a poster</html>"))
        running.add("/endless.jpg", endless)
        running.add("/drip.jpg", drip)
        yield running


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with smaller numbers."""

    def options(**given: object) -> FetchOptions:
        return FetchOptions(**given, timeout=1, retries=1, backoff=0.01, max_bytes=200_000)  # type: ignore[arg-type]

    monkeypatch.setattr("shards.fetch.download.FetchOptions", options)


def predict(model: Path, *options: object) -> int:
    return main(["predict", "-m", str(model), *map(str, options)])


def test_a_url_is_an_image(model_folder: Path, server: MisbehavingServer, posters: Path, tmp_path: Path):
    file, url = posters / "images" / "p00000.jpg", server.url("/p.jpg?token=secret")
    for name in ("a.csv", "a.json", "a.parquet"):
        assert (
            predict(model_folder, "-i", file, url, server.url("/moved.jpg"), "--allow-private", "-o", tmp_path / name)
            == 0
        )
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert table["image"].tolist() == [str(file), url, server.url("/moved.jpg")]
    assert table["error"].isna().all() and table["Drama"].nunique() == 1
    assert [row["image"] for row in json.loads((tmp_path / "a.json").read_text())["predictions"]] == table[
        "image"
    ].tolist()


def test_a_bad_url_is_a_row_with_the_reason(
    model_folder: Path, server: MisbehavingServer, posters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    reasons = {
        server.url("/none.jpg?key=secret"): "http status: 404",
        server.url("/page.jpg"): "not an image",
        server.url("/endless.jpg"): "too large: over",
        server.url("/drip.jpg"): "timeout: not complete",
        server.url("/away.jpg"): "bad link: redirected to",
        f"http://127.0.0.1:{closed_port()}/x.jpg": "no connection",
    }
    assert predict(model_folder, "-i", *reasons, "--allow-private", "-o", tmp_path / "a.csv") == 1
    found = pd.read_csv(tmp_path / "a.csv").set_index("image")["error"]
    assert [url for url, reason in reasons.items() if reason not in found[url]] == []
    assert "/none.jpg?..." in caplog.text and "secret" not in caplog.text  # the table has the URL as it was given
    assert predict(model_folder, "-i", *reasons, posters / "images" / "p00000.jpg", "--allow-private") == 0


def test_python_predicts_urls(model_folder: Path, server: MisbehavingServer, posters: Path):
    model, url = toolkit.load_model(model_folder, device="cpu"), server.url("/p.jpg?token=secret")
    found = model.predict([url, posters / "images" / "p00000.jpg", server.url("/page.jpg")], allow_private=True)
    assert found["image"].tolist()[::2] == [url, server.url("/page.jpg")]
    assert found["error"].isna().tolist() == [True, True, False] and "not an image" in found["error"][2]
    assert found["Drama"][0] == found["Drama"][1]
    assert model.predict(url, allow_private=True)["Drama"].tolist() == pytest.approx([found["Drama"][0]])
    server.requests.clear()
    error = model.predict(url)["error"][0]
    assert "private address" in error and "allow_private=True" in error and not server.requests


def test_private_addresses_are_refused(model_folder: Path, server: MisbehavingServer, tmp_path: Path):
    urls = [server.url("/moved.jpg"), "http://localhost:1/x.jpg", "http://[::1]/x.jpg", "http://169.254.169.254/x.jpg"]
    server.requests.clear()
    assert predict(model_folder, "-i", *urls, "-o", tmp_path / "a.csv") == 1
    errors = pd.read_csv(tmp_path / "a.csv")["error"]
    assert all("private address" in error and "--allow-private" in error for error in errors)
    assert not server.requests


def test_a_redirect_to_a_private_address_is_refused(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch):
    """As if 127.0.0.1 were a public address: its redirect to 127.0.0.2 is not followed."""
    server.add("/inside.jpg", redirect(f"http://127.0.0.2:{server.port}/p.jpg"))
    monkeypatch.setattr("shards.fetch.download.is_public", lambda address: str(address) == "127.0.0.1")
    assert ImageUrl(server.url("/p.jpg?token=secret")).read()
    with pytest.raises(Undecodable, match=r"private address: 127\.0\.0\.2"):
        ImageUrl(server.url("/inside.jpg")).read()


def test_what_is_refused_before_any_work(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    for url, facts in (
        ("https://me:secret@host/x.jpg", ["https://host/x.jpg", "password"]),
        ("http:///x.jpg", ["http:///x.jpg", "host"]),
        ("s3://bucket/x.jpg", ["s3://bucket/x.jpg", "https://"]),
        ("ftp://host/x.jpg", ["ftp://host/x.jpg is not read: name a file, or an http:// or https:// URL"]),
    ):
        with fails("url-refused", *facts):
            predict(model_folder, url)
        with fails("url-refused", *facts) as caught:
            predict(model_folder, "-i", url)
        assert "secret" not in str(caught.value)
    monkeypatch.setattr("shards.extras.absent", lambda *modules: list(modules))
    with fails("extra-missing", "aiohttp", "[http]"):
        predict(model_folder, "-i", "https://host/x.jpg")


def test_texts_are_paths_or_urls():
    texts = ["a.jpg", "HTTPS://host//a/./b.jpg?x=1", "null", "[x].jpg", "c:/x.jpg"]
    assert image_places(texts) == [
        Path("a.jpg"), ImageUrl("HTTPS://host//a/./b.jpg?x=1"), Path("null"), Path("[x].jpg"), Path("c:/x.jpg"),
    ]  # fmt: skip
