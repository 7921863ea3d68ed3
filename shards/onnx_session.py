"""Networks in ONNX files, which onnxruntime runs on the CPU or on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line
from shards.extras import require_extra


def open_session(source: Path | bytes, what: str, extra: str, *, threads: int = 1, device: str = "cpu") -> Any:
    """An onnxruntime session on an ONNX file or its bytes, with ``threads`` for an operator on the CPU.

    ``device``: cpu, cuda, or auto, which is CUDA where onnxruntime has it. ``what`` names the file's role, ``extra``
    brings onnxruntime for it. Raises UserError.
    """
    runtime = require_extra(extra, f"the {what}", "onnxruntime")
    if isinstance(source, Path) and not source.is_file():
        raise UserError("model-missing", f"{what} not found: {source}")
    has_cuda = device != "cpu" and "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "cuda" and not has_cuda:
        remedy = "pip uninstall onnxruntime && pip install onnxruntime-gpu"
        raise UserError("device", f"--device cuda needs onnxruntime with CUDA: {remedy}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors: shape inference warns of what is as it should be
    name, graph = (f"{what} {source}", str(source)) if isinstance(source, Path) else (what, source)
    try:
        return runtime.InferenceSession(
            graph, options, providers=["CUDAExecutionProvider"] * has_cuda + ["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has a class for each status, none of them public
        raise UserError("model-damaged", f"{name} cannot be loaded: {one_line(error)[:300]}") from None
