"""Networks in ONNX files: open one with one thread on the CPU, or on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line


def open_session(path: Path, device: str, what: str) -> Any:
    """An onnxruntime session for ``path``; ``what`` names the file's role. Raises UserError."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("text removal needs onnxruntime: pip install -e '.[clean]'") from None
    if not path.is_file():
        raise UserError(f"{what} not found: {path}")
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "--device cuda needs onnxruntime with CUDA: pip uninstall onnxruntime && pip install onnxruntime-gpu"
            )
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    # One thread a process: the executor has a process per core, and the result must not depend on a thread's luck.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has no error class of its own
        raise UserError(f"{what} {path} cannot be loaded: {one_line(error)[:300]}") from None
