"""Export a model to ``model.pt2``, an ExportedProgram of torch.export, for AOTInductor or for Python without timm."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.errors import UserError, one_line
from toolkit.export.network import OUTPUTS, ExportNetwork, facts, quiet
from toolkit.export.parity_check import Run
from toolkit.inference.onnx_runtime import FACTS_KEY, INPUT
from toolkit.model_folder.folder import ModelFolder

#: Name of the file with the metadata in the archive.
FACTS_FILE = f"{FACTS_KEY}.json"


def exported(folder: ModelFolder, *_: object) -> bytes:
    """Return the content of a model.pt2 file with dynamic batch size. Raises UserError if torch cannot export it."""
    example = torch.zeros(2, 3, *[folder.preprocessing.image_size] * 2)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                ExportNetwork(folder), (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}
            )
            stream = io.BytesIO()
            torch.export.save(program, stream, extra_files={FACTS_FILE: json.dumps(facts(folder, False, None))})
    except Exception as error:  # torch.export and its serializer raise many types of exceptions
        raise UserError(
            "export-unsupported",
            f"torch.export cannot export {folder.config['architecture']} ({type(error).__name__}: "
            f"{one_line(error)[:300]})",
        ) from None
    return stream.getvalue()


def opened(path: Path, _: bool) -> Run:
    """Return a function that runs an exported file on the CPU."""
    with open(path, "rb") as stream:  # torch.export.load requires a certain ending of a path, but not of a stream
        network, _facts = load_torch_export(stream)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(images))
        return {name: values.numpy() for name, values in zip(OUTPUTS, outputs, strict=True)}

    return run


def load_torch_export(data: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the network and the metadata of a path or a stream."""
    extra = {FACTS_FILE: ""}
    with quiet():
        program = torch.export.load(data, extra_files=extra)
    return program.module(), json.loads(extra[FACTS_FILE])
