"""No variable of accelerate's changes a number behind our back: each is refused by name, ours, or of no consequence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from failing import fails
from toolkit_helpers import TINY

from toolkit.cli.main import main
from toolkit.distributed.collectives import make_accelerator
from toolkit.distributed.environment import (
    PRECISION,
    REFUSED,
    REPLACED_BY_OPTIONS,
    matches,
    precision_of,
    require_plain,
)

pytestmark = pytest.mark.usefixtures("one_thread")

#: What else accelerate reads: how processes meet, what libraries and trackers are told, other hardware.
OTHERS = (
    "AWS_*", "CLEARML_*", "DEEPSPEED_USE_HPU", "FOO", "FORK_LAUNCHED", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    "MASTER_*", "MLFLOW_*", "MPI_*", "MV2_*", "NCCL_*", "NODE_RANK", "NPROC", "OMPI_*", "OMP_NUM_THREADS",
    "PJRT_DEVICE", "PMI_*", "PT_HPU_LAZY_MODE", "PYTORCH_ENABLE_MPS_FALLBACK", "RANK", "TPU_NAME", "USE_TORCH_XLA",
    "WANDB_*", "WORLD_SIZE", "XLA_*",
)  # fmt: skip
NAME = r"[\"']([A-Z][A-Z0-9_]+)[\"']"
READ = re.compile(rf"(?:environ(?:\.\w+)?|getenv|from_env)[\[(]\s*{NAME}")
READ_ONE_OF = re.compile(r"from_env\(\s*\[([^\]]*)\]")


def variables() -> set[str]:
    """Every name or beginning of names that the installed accelerate looks up, or has in its own name space."""
    found: set[str] = set()
    root = Path(accelerate.__file__).parent
    for path in root.rglob("*.py"):
        if {"test_utils", "commands"} & set(path.relative_to(root).parts):
            continue
        text = path.read_text()
        found |= set(READ.findall(text))
        found |= {name for names in READ_ONE_OF.findall(text) for name in re.findall(NAME, names)}
        found |= set(re.findall(r"\bACCELERATE_[A-Z0-9_]*[A-Z0-9]\b", text))
        found |= {f"{prefix}X" for prefix in re.findall(r"prefix = [\"']([A-Z_]+_)[\"']", text)}
    return found


#: Variables that decide where and how processes run, and no number (PRECISION does, see `precision_of`).
#: Where there is a star: they are read only with a variable that is refused.
HARMLESS = (
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_DEBUG_RDV_FILE",
    "ACCELERATE_DEEPSPEED_*",
    "ACCELERATE_DYNAMO_*",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_INIT_INCLUDE_BUFFERS",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_USE_CPU",
    "FSDP_*",
    "MEGATRON_LM_*",
    "PARALLELISM_CONFIG_*",
)


def test_every_variable_that_the_installed_accelerate_reads_is_known():
    found = variables()
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_X", "RANK"} <= found and len(found) > 60
    known = [*REFUSED, *REPLACED_BY_OPTIONS, *HARMLESS, PRECISION, "ACCELERATE_X", *OTHERS]
    unknown = {name for name in found if not any(matches(name, entry) for entry in known)}
    assert not unknown, f"say in toolkit/distributed/environment.py, or in HARMLESS, what becomes of {sorted(unknown)}"
    for entry in (*REFUSED, *REPLACED_BY_OPTIONS, *HARMLESS):  # and nothing is listed that is read no more
        assert any(matches(name, entry) for name in found), entry


@pytest.fixture
def every_command(shard_set: Path, model_folder: Path) -> Any:
    """(command, place) → the words of a command that writes there."""

    def words(command: str, out: Path) -> list[str]:
        common = [command, "--shards", str(shard_set), "--out", str(out)]
        return [*common, *(TINY if command == "train" else ["--model", str(model_folder)])]

    return words


#: Variables, with values that would change something.
TELLING = [
    ("ACCELERATE_USE_FSDP", "true"),
    ("ACCELERATE_USE_DEEPSPEED", "True"),
    ("ACCELERATE_USE_MEGATRON_LM", "true"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
    ("ACCELERATE_USE_SAGEMAKER", "true"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ("ACCELERATE_FP8_BACKEND", "TE"),
    ("ACCELERATE_FP8_FORMAT", "E4M3"),
    ("ACCELERATE_DOWNCAST_BF16", "true"),
    ("ACCELERATE_TORCH_DEVICE", "meta"),
    ("ACCELERATE_MIXED_PRECISION", "fp8"),
    ("ACCELERATE_MIXED_PRECISION", "fp16"),
    ("ACCELERATE_MIXED_PRECISION", "int8"),
    ("ACCELERATE_USE_CPU", "perhaps"),
]


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [("train", *one) for one in TELLING]
    + [(command, *one) for command in ("evaluate", "predict") for one in TELLING[::5]],
)
def test_what_would_change_numbers_is_refused_by_name(
    command: str, name: str, value: str, every_command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(name, value)
    out = tmp_path / ("out.json" if command == "evaluate" else "out")
    with fails("environment", *([] if value == "perhaps" else [name])) as caught:
        main(every_command(command, out))
    assert value.lower() in str(caught.value).lower()
    assert not out.exists()


def test_what_a_launcher_says_as_a_rule_is_fine(caplog: pytest.LogCaptureFixture):
    env = {
        "ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_CPU_AFFINITY": "1", "ACCELERATE_LOG_LEVEL": "info", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }  # fmt: skip
    with caplog.at_level("WARNING"):
        require_plain(env)
    assert not caplog.records
    assert precision_of(None, env, True) == "bf16" and precision_of("no", env, True) == "no"
    assert precision_of(None, {PRECISION: "FP16"}, False) == "fp16" and precision_of(None, {}, True) == "no"


def test_gradients_are_not_divided_by_a_variable(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Two runs, to the bit: what counts is our own accumulation, and a warning says so."""
    weights = []
    for steps in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        out = tmp_path / steps
        words = ["--optim.name=momentum", "--optim.lr=0.1", "--train.epochs=1", *TINY]
        with caplog.at_level("WARNING"):
            assert main(["train", "--shards", str(shard_set), "--out", str(out), *words]) == 0
        weights.append((out / "model" / "model.safetensors").read_bytes())
        named = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is '4'" in caplog.text
        assert named == (steps == "4")
    assert weights[0] == weights[1]
    accelerator = make_accelerator()
    accelerator.backward(torch.ones((), requires_grad=True) * 1)
    assert accelerator.gradient_accumulation_steps == 1
