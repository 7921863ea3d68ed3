"""Upload model folders to a hub (`posters push`), and download them (`toolkit.load_model`), with Hugging Face's API.

posters push --model RUN/model --repo USER/NAME --private
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import HfApi, constants, get_session, get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from shards.errors import UserError, one_line
from shards.extras import absent
from toolkit.export.options import PushOptions
from toolkit.model_folder.folder import CONFIG, LABELS, WEIGHTS, ModelFolder, load_model_folder

#: Name patterns of the files of a model. Predictions are separate, because they contain labels of the samples.
FILES = (WEIGHTS, CONFIG, LABELS, "README.md", "metrics-*.json", "model.onnx")
PREDICTIONS = "predictions-*.npz"
REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
#: Valid names of commits and file versions on a hub. The hub's client uses these names in local paths.
PLAIN = re.compile(r"[\w-][\w.-]{0,127}", re.ASCII)
#: Headers with the name of a commit or of a file version.
HEADERS = ("ETag", "X-Linked-Etag", "X-Repo-Commit")
#: Time limit in seconds for a connection to the hub.
CONNECT_SECONDS = 5.0


def run_push(options: PushOptions) -> int:
    """Check a model folder and upload it in one commit. Returns the exit status."""
    _check_name(options.repo, "--repo")
    folder = load_model_folder(options.model)
    _check_onnx(folder)
    if get_token() is None:
        raise UserError(
            "environment", "no token for the hub: run `hf auth login`, or set HF_TOKEN to a token with write access"
        )
    if not reachable():
        raise UserError("network", f"no connection to {constants.ENDPOINT}: nothing was uploaded")
    patterns = [*FILES, *([PREDICTIONS] if options.with_predictions else [])]
    api = HfApi()
    try:
        api.create_repo(options.repo, private=options.private or None, exist_ok=True)
        if options.revision is not None:
            api.create_branch(options.repo, branch=options.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=options.repo,
            folder_path=options.model,
            allow_patterns=patterns,
            revision=options.revision,
            commit_message=options.message or f"{folder.config['architecture']}, {len(folder.labels)} genres",
        )
    except Exception as error:  # errors of the hub's client and of its HTTP library, which depends on the version
        raise _hub_error(error, f"nothing was uploaded to {options.repo}") from None
    names = sorted({path.name for pattern in patterns for path in options.model.glob(pattern)})
    print(f"files   {', '.join(names)}")
    print(f"commit  {commit.oid}")
    print(f"model   {constants.ENDPOINT}/{options.repo}")
    return 0


def fetch_model(repo_id: str, revision: str | None = None) -> Path:
    """Download a model folder from the hub, or find it in the client's cache. Returns its local path.

    Raises UserError if the name is invalid, if the model does not exist, or if the model is not in the cache and the
    hub cannot be reached.
    """
    _check_name(repo_id, "model")
    online = reachable()
    try:
        with _checked_responses():
            found = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(FILES),
                ignore_patterns=["*/*"],  # a star in FILES matches names of folders, too
                local_files_only=not online,
            )
    except RevisionNotFoundError:
        raise UserError(
            "model-missing", f"{constants.ENDPOINT} has {repo_id}, but not its revision {revision!r}"
        ) from None
    except (RepositoryNotFoundError, GatedRepoError):
        raise UserError(
            "model-missing",
            f"{constants.ENDPOINT} has no model {repo_id} that you may read. If it is private, run `hf auth login` "
            f"or set HF_TOKEN",
        ) from None
    except Exception as error:  # errors of the hub's client and of its HTTP library, which depends on the version
        if not online:
            raise UserError(
                "network",
                f"no connection to {constants.ENDPOINT}, and {repo_id} is not in the cache: download it on a machine "
                f"with a network, and load the downloaded folder",
            ) from None
        raise _hub_error(error, f"{repo_id} cannot be downloaded") from None
    return Path(found)


@contextlib.contextmanager
def _checked_responses() -> Iterator[None]:
    """Check every response of the hub before the client uses it. The client puts names from responses into paths."""
    client = get_session()
    before = client.event_hooks
    client.event_hooks = {**before, "response": [*before["response"], _check_response]}
    try:
        yield
    finally:
        client.event_hooks = before


def _check_response(response: Any) -> None:
    """Raise UserError if a response has an invalid name (see PLAIN). A path with such a name could leave the cache."""
    names: list[Any] = []
    if response.request.method == "HEAD":  # only the headers, with the version of a file
        names += [response.headers.get(name, "").removeprefix("W/").strip('"') for name in HEADERS]
    elif response.request.url.path.startswith("/api/") and "json" in response.headers.get("Content-Type", ""):
        response.read()
        with contextlib.suppress(ValueError):  # the client itself reports invalid JSON
            names += _names(response.json())
    for text in filter(None, names):
        if not isinstance(text, str) or not PLAIN.fullmatch(text):
            problem = f"the hub's response has an invalid name of a commit or a file version: {str(text)[:80]!r}"
            raise UserError("network", problem)


def _names(value: Any) -> Iterator[Any]:
    """Yield the names in a JSON response: the name of the commit, or the names of the file versions."""
    if isinstance(value, dict):
        yield value.get("sha")
    for file in value if isinstance(value, list) else ():
        if isinstance(file, dict):
            large = file.get("lfs")
            yield from (file.get("oid"), file.get("xetHash"), isinstance(large, dict) and large.get("oid"))


def reachable() -> bool:
    """Return whether the hub accepts connections. If it does not, the hub's client retries for nearly a minute.

    If a proxy is set, nothing is checked and the result is True.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _check_name(repo: str, what: str) -> None:
    if not REPO.fullmatch(repo):
        raise UserError("option-value", f"{what} {repo!r} is not the name of a repository: use USER/NAME")


def _check_onnx(folder: ModelFolder) -> None:
    """Raise UserError if weights, calibration or thresholds of model.onnx differ from those of its folder.

    Without onnxruntime nothing is checked.
    """
    path = folder.path / "model.onnx"
    if path.is_file() and not absent("onnxruntime"):
        from toolkit.inference.onnx_runtime import OnnxModel

        stated = OnnxModel(path, folder, torch.device("cpu")).facts
        if stated.get("decisions") != folder.decisions.fingerprint:
            raise UserError(
                "model-other",
                f"the calibration or thresholds of {path} differ from those of {folder.path}: run "
                f"`posters export --model {folder.path}` again, or remove the file",
            )


def _hub_error(error: Exception, what: str) -> UserError:
    """Return a UserError in one line, with a remedy for known HTTP statuses."""
    if isinstance(error, UserError):
        return UserError(error.code, f"{what}: {error}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = {
        401: "the hub does not accept the token (401): run `hf auth login` again, or set HF_TOKEN",
        403: "the token has no write access (403): use a token with write access to this user or organisation",
        404: "the hub has no such repository or revision, or you have no access to it (404)",
    }
    reason = known.get(status or 0) or f"{type(error).__name__}: {one_line(error)[:300]}"
    return UserError("network", f"{what}: {reason}")
