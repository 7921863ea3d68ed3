"""Open neural networks in ONNX files with onnxruntime, on the CPU or with CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line
from shards.extras import require_extra


def open_session(source: Path | bytes, what: str, extra: str, *, threads: int = 1, device: str = "cpu") -> Any:
    """Return an onnxruntime session for an ONNX file or its bytes. Raises UserError.

    what: role of the file in messages, such as "text detector". extra: the extra of setup.cfg that has onnxruntime.
    threads: number of CPU threads for one operator. device: cpu, cuda, or auto (CUDA if onnxruntime supports it).
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
    options.log_severity_level = 3  # only errors, because the warnings of shape inference are false alarms
    name, graph = (f"{what} {source}", str(source)) if isinstance(source, Path) else (what, source)
    try:
        return runtime.InferenceSession(
            graph, options, providers=["CUDAExecutionProvider"] * has_cuda + ["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exception classes are not public
        raise UserError("model-damaged", f"{name} cannot be loaded: {one_line(error)[:300]}") from None
