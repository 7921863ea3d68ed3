"""Run an ONNX file of `posters export` in onnxruntime instead of the PyTorch network of the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.errors import UserError, one_line
from shards.extras import require_extra
from shards.onnx_session import open_session
from toolkit.model_folder.folder import OWN_KEY, ModelFolder

AGAIN = "run `posters export` again"
INPUT = "images"
#: Name of the metadata of `posters export`: a key in ONNX files (metadata_props), an extra file in torch.export files.
FACTS_KEY = OWN_KEY


class OnnxModel:
    """A model that runs in onnxruntime, from an ONNX file that `posters export` wrote without --preprocess."""

    def __init__(self, path: Path, folder: ModelFolder, device: torch.device) -> None:
        """Use the GPU if ``device`` is a GPU and onnxruntime can use CUDA. Else use as many CPU threads as torch.

        Raises UserError if onnxruntime or the file is missing, or if the file is not an export of ``folder``.
        """
        require_extra("export", "a model in ONNX", "onnxruntime")
        again = f"run `posters export --model {folder.path}`"
        if not path.is_file():
            raise UserError("model-missing", f"no exported model at {path}: {again} first")
        self.session = open_exported(path, device)
        stated = read_facts(self.session, path)
        if stated.get("preprocess"):
            raise UserError("model-other", f"{path} includes its preprocessing: {again} without --preprocess")
        own = {"weights_sha256": folder.fingerprint, "labels_fingerprint": folder.labels.fingerprint}
        if other := [key for key in own if stated.get(key) != own[key]]:
            what = "weights" if other[0] == "weights_sha256" else "genres"
            raise UserError(
                "model-other",
                f"{path} was exported from another model: its {what} differ from those of {folder.path}; {again} again",
            )
        self.facts, self.path, self.genres = stated, path, len(folder.labels)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 (n, G) logits and (n, F) embeddings of normalised (n, 3, S, S) images, on their device."""
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            logits, embedding = self.session.run(["logits", "embedding"], {INPUT: array})
        except Exception as error:  # onnxruntime's exception classes are not public
            raise UserError("model-damaged", f"{self.path} cannot be run: {one_line(error)[:200]}; {AGAIN}") from None
        if logits.shape != (len(array), self.genres) or embedding.shape[:1] != logits.shape[:1]:
            raise UserError(
                "model-damaged",
                f"{self.path} gives outputs of shape {logits.shape} for {len(array)} images and {self.genres} genres; "
                f"{AGAIN}",
            )
        return torch.from_numpy(logits).to(images.device), torch.from_numpy(embedding).to(images.device)


def open_exported(source: Path | bytes, device: torch.device) -> Any:
    """Open an onnxruntime session on a file of `posters export`, or on its bytes. Raises UserError after a failure."""
    where = "auto" if device.type == "cuda" else "cpu"
    return open_session(source, "exported model", "export", threads=torch.get_num_threads(), device=where)


def read_facts(session: Any, path: Path) -> dict[str, Any]:
    """Return the metadata that `posters export` wrote to a file. Raises UserError for an ONNX file without metadata."""
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map[FACTS_KEY])
        if not isinstance(found, dict):
            raise ValueError(found)
    except (KeyError, ValueError, RecursionError):
        raise UserError(
            "path-unreadable", f"{path} was not written by `posters export`: its metadata has no {FACTS_KEY}"
        ) from None
    return found


def run_session(session: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run ``session`` on ``images`` and return every output by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: images}), strict=True))
