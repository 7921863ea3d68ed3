"""Read rank and world size, and check the environment variables that accelerate reads.

`accelerate launch` passes its options and its config to the processes in environment variables. A variable that is left
over from an earlier job has the same effect. Such a variable can change all results of a run,
while the configuration and the command line stay the same. Some variables are therefore rejected, and others that have
no effect cause a warning.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

import torch

from shards.errors import UserError
from shards.values import whole_number

log = logging.getLogger(__name__)

_PARALLEL = (
    "use a config with distributed_type MULTI_GPU, because the toolkit trains with data parallelism only, and set "
    "--train.fsdp true if the model is too large for one GPU (see docs/scale/fsdp.md)"
)
#: Rejected variables → (what the variable requests, the remedy). A variable with a value of OFF is accepted.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("use FSDP", _PARALLEL),
    "ACCELERATE_USE_DEEPSPEED": ("use DEEPSPEED", _PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": ("use MEGATRON_LM", _PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("split models or samples", _PARALLEL),
    "ACCELERATE_USE_SAGEMAKER": ("connect through SageMaker", _PARALLEL),
    "ACCELERATE_DYNAMO_BACKEND": ("compile models", "unset it, and use --train.compile true, or --compile"),
    "ACCELERATE_FP8_*": ("compute in fp8", "unset it, and set the precision to bf16, fp16 or no"),
    "ACCELERATE_DOWNCAST_BF16": ("use bf16 in place of float32", "unset it, and use --train.precision"),
    "ACCELERATE_TORCH_DEVICE": ("use one device", "unset it, and set CUDA_VISIBLE_DEVICES, or ACCELERATE_USE_CPU=true"),
}
#: Values with which a variable has no effect.
OFF = ("", "0", "false", "no", "n", "f", "off")
#: Variables that the toolkit ignores → (values that cause no warning, the option to use instead).
REPLACED_BY_OPTIONS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1", "auto"), "--train.accumulation"),
    "ACCELERATE_GRADIENT_CLIPPING": (("", "auto", "0", "0.0"), "--optim.clip_norm"),
}
PRECISION = "ACCELERATE_MIXED_PRECISION"


def matches(name: str, entry: str) -> bool:
    """Return whether ``name`` matches ``entry``, a name in REFUSED. A * at the end of ``entry`` matches any text."""
    return name == entry or (entry.endswith("*") and name.startswith(entry[:-1]))


def require_plain(env: Mapping[str, str]) -> None:
    """Raise UserError if a variable in REFUSED is set. Log a warning for a variable that has no effect."""
    for name, value in sorted(env.items()):
        for entry, (request, remedy) in REFUSED.items():
            if matches(name, entry) and value.lower() not in OFF:
                what = f"{name} is {value!r} in the environment, so accelerate is configured to {request}: {remedy}"
                raise UserError("environment", what)
        usual, option = REPLACED_BY_OPTIONS.get(name, ((value.lower(),), ""))
        if value.lower() not in usual and env.get("RANK", "0") == "0":
            log.warning("%s is %r in the environment and has no effect: use %s", name, value, option)


def precision_of(asked: str | None, env: Mapping[str, str], on_cpu: bool) -> str:
    """Return ``asked``. If it is None, return the precision that the launcher has set in ``env``: no, bf16 or fp16.

    Raises UserError if the launcher has set a precision that is not one of these three. Raises UserError for fp16 on
    a CPU, because accelerate cannot scale gradients there.
    """
    if asked is not None:
        return asked
    value = env.get(PRECISION, "").lower() or "no"
    configured = f"accelerate is configured to compute in {value} ({PRECISION})"
    if value not in ("no", "bf16", "fp16"):
        raise UserError("environment", f"{configured}: set the precision to bf16, fp16 or no")
    if value == "fp16" and on_cpu:
        raise UserError("environment", f"{configured}, which needs a GPU: set the precision to bf16 or no")
    return value


def on(env: Mapping[str, str], name: str) -> bool:
    """Return whether accelerate treats the value of variable ``name`` as true."""
    return env.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def ranks_of(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return rank and world size: as given, of torch.distributed, or of the environment. Raises UserError if wrong."""
    if (rank is None) != (world_size is None):
        raise UserError("option-missing", "pass both rank and world_size, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        texts = [os.environ.get("RANK"), os.environ.get("WORLD_SIZE")]
        if texts == [None, None]:
            return 0, 1
        if not all(text is not None and text.isdecimal() for text in texts):
            what = f"RANK is {texts[0]!r} and WORLD_SIZE is {texts[1]!r} in the environment, instead of whole numbers"
            raise UserError("environment", f"{what}: make the ShardLoader after the process group, or pass both")
        rank, world_size = (int(text) for text in texts if text is not None)
    rank, world_size = whole_number("rank", rank, 0), whole_number("world_size", world_size, 1)
    if rank >= world_size:
        raise UserError("option-value", f"rank must be from 0 to world_size - 1, not {rank} of {world_size}")
    return rank, world_size


_warned = threading.Event()


def require_same_ranks(rank: int, world_size: int) -> None:
    """Raise UserError if the process now has another rank than a ShardLoader, which found it when it was made.

    Warn once if the ranks come from the environment only. A training in such processes is not one training.
    """
    now = ranks_of()
    if now != (rank, world_size):
        what = f"this process is rank {now[0]} of {now[1]}, but was rank {rank} of {world_size}"
        raise UserError("environment", f"{what} when the ShardLoader was made: make it after the process group")
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size > 1 and not together and not _warned.is_set():
        _warned.set()
        log.warning(
            "WORLD_SIZE is %d, so this process gets its share of the samples, but it has no process group: for a "
            "training, call torch.distributed.init_process_group (Accelerate on CPUs: Accelerator(cpu=True))",
            world_size,
        )
