"""What accelerate reads from the environment, and what becomes of it: refused, decided by us, or of no consequence.

`accelerate launch` passes its options and its config on in variables, and any variable that an earlier job left counts
like them. Some change every number of a run (the gradient divided by four, another precision, a compiled model), while
configuration and command line say nothing of it. What two processes may not have differently: agreement.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shards.errors import UserError

log = logging.getLogger(__name__)

_PARALLEL = (
    "this version trains with data parallelism only: take a config with distributed_type MULTI_GPU, and for a model "
    "that does not fit one GPU --train.fsdp true (see docs/scale/fsdp.md)"
)
#: Variables that have accelerate do something else, what it was told by them, and the remedy. Values of OFF do nothing.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("use FSDP", _PARALLEL),
    "ACCELERATE_USE_DEEPSPEED": ("use DEEPSPEED", _PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": ("use MEGATRON_LM", _PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("cut models or samples", _PARALLEL),
    "ACCELERATE_USE_SAGEMAKER": ("meet by SageMaker's means", _PARALLEL),
    "ACCELERATE_DYNAMO_BACKEND": ("compile models", "unset it, and use --train.compile true, or --compile"),
    "ACCELERATE_FP8_*": ("compute in fp8", "unset it, and use bf16, fp16 or no"),
    "ACCELERATE_DOWNCAST_BF16": ("take bf16 for float32", "unset it, and use --train.precision"),
    "ACCELERATE_TORCH_DEVICE": ("use one device", "choose GPUs by CUDA_VISIBLE_DEVICES, or ACCELERATE_USE_CPU=true"),
}
OFF = ("", "0", "false", "no", "n", "f", "off")
#: Variables that change nothing here, their usual values, and the option that does what they are for.
REPLACED_BY_OPTIONS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1", "auto"), "--train.accumulation"),
    "ACCELERATE_GRADIENT_CLIPPING": (("", "auto", "0", "0.0"), "--optim.clip_norm"),
}
PRECISION = "ACCELERATE_MIXED_PRECISION"


def matches(name: str, entry: str) -> bool:
    """Whether a variable is the one of the tables above, or one of those that its star stands for."""
    return name == entry or (entry.endswith("*") and name.startswith(entry[:-1]))


def require_plain(env: Mapping[str, str]) -> None:
    """Raise UserError for a variable that would have accelerate do something else than we say; warn of idle ones."""
    for name, value in sorted(env.items()):
        for entry, (told, remedy) in REFUSED.items():
            if matches(name, entry) and value.lower() not in OFF:
                raise UserError(
                    "environment", f"accelerate was told to {told}; {remedy} ({name} is {value!r} in the environment)"
                )
        usual, option = REPLACED_BY_OPTIONS.get(name, ((value.lower(),), ""))
        if value.lower() not in usual and env.get("RANK", "0") == "0":
            log.warning("%s is %r in the environment, and not used: it is %s that counts", name, value, option)


def precision_of(asked: str | None, env: Mapping[str, str], on_cpu: bool) -> str:
    """no, bf16 or fp16: as an option asks for it, else as the launcher says.

    Raises UserError for another precision of the launcher's, and for its fp16 on a CPU, where accelerate would compute
    without the gradient scaler that it needs.
    """
    if asked is not None:
        return asked
    value = env.get(PRECISION, "").lower() or "no"
    if value not in ("no", "bf16", "fp16"):
        raise UserError("environment", f"accelerate was told to compute in {value} ({PRECISION}): use bf16, fp16 or no")
    if value == "fp16" and on_cpu:
        raise UserError(
            "environment", f"accelerate was told to compute in fp16 ({PRECISION}), which needs a GPU: use bf16 or no"
        )
    return value


def on(env: Mapping[str, str], name: str) -> bool:
    """Whether accelerate takes a variable for true."""
    return env.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")
