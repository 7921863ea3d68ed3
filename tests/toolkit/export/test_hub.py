"""Models up to a hub and down again, over real HTTP to a server on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import pytest
import torch
from failing import fails
from hub_server import SHA, TOKEN, Hub, running_hub
from huggingface_hub import constants
from toolkit_helpers import error_lines, free_port, make_model_folder, run_python, with_threshold

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from toolkit.cli.main import main
from toolkit.export.hub import fetch_model
from toolkit.model_folder.folder import load_model_folder, write_labels
from toolkit.models.heads import HeadSpec

KEPT = ["README.md", "config.json", "labels.json", "metrics-test.json", "model.safetensors"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client with a cache of its own, a token, no proxy and plain HTTP uploads."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as running:
        _point_at(running.url, monkeypatch)
        yield running


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    from huggingface_hub import hf_api

    monkeypatch.setattr(hf_api.api, "endpoint", url)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """With all that may lie in a model folder, and what does not belong there."""
    copy = shutil.copytree(model_folder, tmp_path / "model")
    (copy / "metrics-test.json").write_text("{}")
    (copy / "predictions-test.npz").write_bytes(b"PK")
    (copy / "notes.txt").write_text("mine")
    (copy / "model.safetensors.123.partial").write_bytes(b"half")
    return copy


def test_what_belongs_goes_up_and_comes_down_again(folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["push", "--model", str(folder), "--repo", "user/name", "--private"]) == 0
    assert hub.created == [{"name": "name", "organization": "user", "visibility": "private"}]
    assert sorted(hub.files) == KEPT
    assert all(hub.files[name] == (folder / name).read_bytes() for name in KEPT)
    assert [commit["branch"] for commit in hub.commits] == ["main"]
    out = capsys.readouterr().out
    assert f"{hub.url}/user/name" in out and SHA in out and "notes.txt" not in out

    found = fetch_model("user/name")
    assert sorted(path.name for path in found.iterdir()) == KEPT
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model_folder(found).model(images), load_model_folder(folder).model(images))


def test_branch_message_and_predictions_on_request(folder: Path, hub: Hub):
    command = ["push", "--model", str(folder), "--repo", "user/name", "--with-predictions"]
    assert main([*command, "--revision", "second", "--message", "better"]) == 0
    assert sorted(hub.files) == sorted([*KEPT, "predictions-test.npz"])
    assert hub.commits[0]["branch"] == "second" and hub.commits[0]["summary"] == "better"
    assert "POST /api/models/user/name/branch/second" in hub.requests
    assert "visibility" not in hub.created[0]


def test_an_exported_file_goes_along_if_it_is_of_these_weights(folder: Path, hub: Hub, tmp_path: Path):
    torch.manual_seed(5)
    other = make_model_folder(tmp_path / "other", LabelSet(("a", "b")), HeadSpec("linear", (), 0.0))
    assert main(["export", "-m", str(other)]) == 0
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    with fails("model-other", folder / "model.onnx", "posters export"):
        main(["push", "-m", str(folder), "--repo", "user/name"])
    assert not hub.requests
    assert main(["push", "-m", str(other), "--repo", "user/name"]) == 0
    assert hub.files["model.onnx"] == (other / "model.onnx").read_bytes()
    loaded = load_model_folder(other)
    write_labels(other, loaded.labels, with_threshold(loaded.decisions, 0.4))  # as `posters tune` does
    with fails("model-other", other / "model.onnx", f"posters export --model {other}"):
        main(["push", "-m", str(other), "--repo", "user/name"])


def test_a_damaged_model_stays_here(folder: Path, hub: Hub):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        main(["push", "-m", str(folder), "--repo", "user/name"])
    assert not hub.requests


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (401, ["(401)", "hf auth login", "HF_TOKEN"]),
        (403, ["(403)", "write access"]),
        (404, ["(404)", "repository"]),
        (400, ["BadRequestError: Bad request: no"]),
    ],
)
def test_a_refusal_is_one_line(folder: Path, hub: Hub, status: int, facts: list[str]):
    hub.refusal = status
    with fails("network", *facts, "user/name"):
        main(["push", "-m", str(folder), "--repo", "user/name"])


def test_no_token(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token for the hub: run `hf auth login`"):
        main(["push", "-m", str(folder), "--repo", "user/name"])
    assert not hub.requests


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "user/", "", "user/na me", "https://x/y"])
def test_a_wrong_name_is_refused_before_all_else(model_folder: Path, name: str):
    with fails("option-value", repr(name), "USER/NAME"):
        main(["push", "-m", str(model_folder), f"--repo={name}"])
    with fails("option-value", repr(name), "USER/NAME"):
        fetch_model(name)


def test_without_network_it_says_so_at_once(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    main(["push", "-m", str(folder), "--repo", "user/name"])
    fetch_model("user/name")
    _point_at(f"http://127.0.0.1:{free_port()}", monkeypatch)
    start = time.monotonic()
    with fails("network", "nothing was uploaded"):
        main(["push", "-m", str(folder), "--repo", "user/name"])
    assert (fetch_model("user/name") / "labels.json").is_file()  # from the cache
    with fails("network", "user/other", "cache"):
        fetch_model("user/other")
    assert time.monotonic() - start < 5


def _commit(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("hub_server.SHA", name)


def _content(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    entry = hub_server._Handler._entry
    large = {"oid": name, "size": 1, "pointerSize": 1}
    monkeypatch.setattr(hub_server._Handler, "_entry", lambda self, file: {**entry(self, file), "lfs": large})


def _version(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hub_server, "etag_of", lambda data: name)


@pytest.mark.parametrize("says", [_commit, _content, _version])
@pytest.mark.parametrize("name", ["../../../../../victim", "/{}/victim", "..", "x" * 300])
def test_a_hub_names_no_file_outside_its_cache(
    says: Callable[[Hub, pytest.MonkeyPatch, str], None],
    name: str,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    hub.files = {"config.json": b"{}"}
    says(hub, monkeypatch, name.format(tmp_path))
    with fails("network", "invalid name of a commit or a file version"):
        fetch_model("user/name")
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "cache" not in path.parents]
    assert not outside


def test_files_in_folders_are_not_a_models(hub: Hub):
    hub.files = {"config.json": b"{}", "metrics-a/../../../x.json": b"{}", "metrics-a/b.json": b"{}"}
    assert [path.name for path in fetch_model("user/name").rglob("*")] == ["config.json"]


def test_a_model_that_is_not_there(hub: Hub):
    with fails("model-missing", "user/name", "hf auth login", "HF_TOKEN"):
        fetch_model("user/name")


def test_a_revision_that_is_not_there(folder: Path, hub: Hub):
    main(["push", "-m", str(folder), "--repo", "user/name"])
    with fails("model-missing", "user/name", "revision 'gone'"):
        fetch_model("user/name", "gone")
    assert fetch_model("user/name", "main").is_dir()


def test_the_command_has_no_traceback(folder: Path, settings: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    run = run_python("-m", "toolkit", "push", "-m", folder, "--repo", "user/name")
    assert run.returncode == 2
    assert len(error_lines(run)) == 1 and "no connection to http://127.0.0.1" in run.stderr
