"""Environment variables that accelerate reads: rejected, replaced by our own options, or without effect.

`accelerate launch` passes its options and its config in variables. A variable from an earlier job has the same effect.
Some variables change every result of a run (gradient divided by four, other precision, compiled model), while
configuration and command line do not show it. agreement.py compares the facts of several processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shards.errors import UserError

log = logging.getLogger(__name__)

_PARALLEL = (
    "this version trains with data parallelism only: use a config with distributed_type MULTI_GPU, and for a model too "
    "large for one GPU --train.fsdp true (see docs/scale/fsdp.md)"
)
#: Rejected variables of accelerate → (what the variable requests, the remedy). Values in OFF have no effect.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("use FSDP", _PARALLEL),
    "ACCELERATE_USE_DEEPSPEED": ("use DEEPSPEED", _PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": ("use MEGATRON_LM", _PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("split models or samples", _PARALLEL),
    "ACCELERATE_USE_SAGEMAKER": ("connect through SageMaker", _PARALLEL),
    "ACCELERATE_DYNAMO_BACKEND": ("compile models", "unset it, and use --train.compile true, or --compile"),
    "ACCELERATE_FP8_*": ("compute in fp8", "unset it, and use bf16, fp16 or no"),
    "ACCELERATE_DOWNCAST_BF16": ("use bf16 in place of float32", "unset it, and use --train.precision"),
    "ACCELERATE_TORCH_DEVICE": ("use one device", "choose GPUs by CUDA_VISIBLE_DEVICES, or ACCELERATE_USE_CPU=true"),
}
OFF = ("", "0", "false", "no", "n", "f", "off")
#: Variables without effect here → (their usual values, the option to use instead).
REPLACED_BY_OPTIONS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1", "auto"), "--train.accumulation"),
    "ACCELERATE_GRADIENT_CLIPPING": (("", "auto", "0", "0.0"), "--optim.clip_norm"),
}
PRECISION = "ACCELERATE_MIXED_PRECISION"


def matches(name: str, entry: str) -> bool:
    """Return whether ``name`` equals an ``entry`` of the tables above, or starts with it if the entry ends with *."""
    return name == entry or (entry.endswith("*") and name.startswith(entry[:-1]))


def require_plain(env: Mapping[str, str]) -> None:
    """Raise UserError for a variable in REFUSED, and warn of variables without effect."""
    for name, value in sorted(env.items()):
        for entry, (request, remedy) in REFUSED.items():
            if matches(name, entry) and value.lower() not in OFF:
                what = f"accelerate is configured to {request}; {remedy} ({name} is {value!r} in the environment)"
                raise UserError("environment", what)
        usual, option = REPLACED_BY_OPTIONS.get(name, ((value.lower(),), ""))
        if value.lower() not in usual and env.get("RANK", "0") == "0":
            log.warning("%s is %r in the environment and has no effect: use %s", name, value, option)


def precision_of(asked: str | None, env: Mapping[str, str], on_cpu: bool) -> str:
    """Return no, bf16 or fp16: the option's value ``asked``, or the launcher's if that is None.

    Raises UserError if the launcher requests another precision, or fp16 on a CPU, where accelerate would leave out the
    gradient scaler.
    """
    if asked is not None:
        return asked
    value = env.get(PRECISION, "").lower() or "no"
    configured = f"accelerate is configured to compute in {value} ({PRECISION})"
    if value not in ("no", "bf16", "fp16"):
        raise UserError("environment", f"{configured}: use bf16, fp16 or no")
    if value == "fp16" and on_cpu:
        raise UserError("environment", f"{configured}, which needs a GPU: use bf16 or no")
    return value


def on(env: Mapping[str, str], name: str) -> bool:
    """Return whether accelerate treats a variable as true."""
    return env.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")
