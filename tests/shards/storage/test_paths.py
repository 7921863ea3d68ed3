"""What a URL says in secret goes to its store and into no text; what is odd is one line without it."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from urllib.parse import quote

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError, one_line, without_secrets
from shards.storage.paths import storage_path

# What a user may have typed for a password: anything, percent-encoded or not, as far as a URL can have it.
SECRET = st.text("abcXYZ019!$&*+,;=:@._~-%é\"'", min_size=6, max_size=12).map(lambda text: f"hush{text}hush")


@settings(derandomize=True, deadline=None, max_examples=15)
@given(user=SECRET, password=SECRET, token=SECRET, scheme=st.sampled_from(["http", "https", "HTTP"]))
def test_no_text_of_a_place_has_what_is_secret(user: str, password: str, token: str, scheme: str) -> None:
    safe = "!$&*+,;=._~-'"
    url = f"{scheme}://{quote(user, safe)}:{quote(password, safe)}@host.example:81/set?token={quote(token, safe)}"
    made = pickle.loads(pickle.dumps(storage_path(url) / "manifest.json"))
    texts = [str(made), repr(made), made.name, str(made.parent), str(UserError("network", f"{url} cannot be read"))]
    assert not any("hush" in text for text in [*texts, one_line(OSError(f"GET '{url}'"))])
    options = made.storage_options
    assert options["query"] == f"token={quote(token, safe)}"
    said = base64.b64decode(options["headers"]["Authorization"].removeprefix("Basic ")).decode()
    assert said == f"{user}:{password}"


@settings(derandomize=True, deadline=None, max_examples=100)
@given(SECRET, st.sampled_from(["http", "ftp", "s3", "webdav"]))
def test_nor_has_an_error_that_quotes_a_url_as_it_was_typed(secret: str, scheme: str) -> None:
    for url in (f"{scheme}://me:{secret}@h/x", f"{scheme}:/me:{secret}@h/x?y", f"{scheme}://h/x?key={quote(secret)}"):
        for text in (url, f"'{url}'", f"cannot read {url}: no", f"({url})"):
            assert "hush" not in without_secrets(text), text


@pytest.mark.parametrize(
    "text",
    [
        *("no URL at all? yes: none", "C:/data/x?.tar", "hf://datasets/me/set@main/x.tar", "a b://", "://x?y"),
        *("http://127.0.0.1:80/set/train-00000.tar is missing", "abfs://box@account.dfs.core.windows.net/x"),
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert without_secrets(text) == text.replace("x?.tar", "x?...")


def test_a_long_text_takes_no_long_time() -> None:
    for text in ("a" * 300_000 + ":/", "a:/" * 100_000, "http://" + "a@" * 100_000, "x:/y?" * 50_000):
        assert without_secrets(text)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:hush/hush@host/x", "port"),
        ("http://[::1/hush", "malformed"),
        ("http://me:hush@/x", "no host"),
        ("http://?hush", "no host"),
        ("s3://me:hush@bucket/x", "s3:// URLs cannot contain a password"),
        ("memory://me:hush@bucket/x", "memory:// URLs cannot contain a password"),
        ("nonsense://me:hush@bucket/x", "nonsense"),
        ("s3://", "s3://BUCKET/SET"),
        ("gs:///", "gs://BUCKET/SET"),
        ("hf://", "hf://datasets/USER/NAME"),
        ("hf://datasets/name", "hf://datasets/USER/NAME"),
    ],
)
def test_what_cannot_be_a_place(url: str, words: str) -> None:
    with fails("url-refused", words) as caught:
        storage_path(url)
    assert "hush" not in str(caught.value)


def test_what_needs_nothing_of_this() -> None:
    assert storage_path("data/a?b") == Path("data/a?b") and storage_path("file:///a/b") == Path("/a/b")
    assert str(storage_path("s3://bucket/x?versionId=1")) == "s3://bucket/x?versionId=1"
    assert str(storage_path("hf://datasets/me/set@main")) == "hf://datasets/me/set@main"
    assert str(storage_path("http://[::1]:81/set")) == "http://[::1]:81/set"
