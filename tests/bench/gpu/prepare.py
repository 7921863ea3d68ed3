"""Posters, shards and facts for the items of gpu_check.py, in a folder: ``prepare.py WORK SIZE [DATA]``

SIZE: tiny or full. Without a GPU it is tiny.

    WORK/posters/images/*.jpg, metadata.csv   of the pieces below DATA, or drawn ones
         shards/                              of those posters
         weights.safetensors                  random ones of a tiny network, for a tiny check
         facts.json                           device, versions, number of posters
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

import torch  # noqa: E402

from gpu.pieces import TABLE, restore, tars_in  # noqa: E402
from gpu.wheels import Unusable  # noqa: E402
from shards.build.run import BuildOptions, build_shards  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.inputs.synthetic import draw_poster_set  # noqa: E402
from shards.storage.files import write_json  # noqa: E402

#: Posters that are drawn where no pieces are given.
DRAWN, DRAWN_TINY = 1000, 90
VERSIONS = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "simplejpeg", "onnxruntime", "rapidocr")


def prepare(work: Path, tiny: bool, data: Path | None) -> None:
    """Fill ``work``. Raises UserError."""
    tiny = tiny or not torch.cuda.is_available()
    posters, tars = work / "posters", tars_in(data)
    if tars:
        restore(tars, posters, DRAWN_TINY if tiny else 1_000_000)
    else:
        draw_poster_set(posters, DRAWN_TINY if tiny else DRAWN)
    manifest = build_shards(
        BuildOptions(
            metadata=posters / TABLE,
            images=posters / "images",
            out=work / "shards",
            samples_per_shard=20 if tiny else 200,
            near_duplicates=0,
            max_rejected=1.0 if not tars else 0.05,  # some drawn ones are bad on purpose
            workers=1 if tiny else 0,
        )
    )
    for name in () if tars else ("zero_bytes", "truncated", "not_an_image"):
        (posters / "images" / f"bad_{name}.jpg").unlink()
    if tiny:
        import timm
        from safetensors.torch import save_file

        save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), work / "weights.safetensors")
    count = sum(shard.samples for shard in manifest.shards)
    write_json(work / "facts.json", {**facts(), "posters": count, "drawn": not tars, "tiny": tiny})


def facts() -> dict[str, Any]:
    """The device and the versions."""
    gpu = torch.cuda.is_available()
    versions: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "gpus": torch.cuda.device_count(),
        "driver": driver(),
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
        "text_on_gpu": "CUDAExecutionProvider" in providers(),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, if there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True)
    return said.stdout.split("\n")[0].strip() if said.returncode == 0 else None


def providers() -> list[str]:
    """What onnxruntime can run on; nothing without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return []
    found: list[str] = onnxruntime.get_available_providers()
    return found


if __name__ == "__main__":
    try:
        prepare(Path(sys.argv[1]), sys.argv[2] == "tiny", Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    except (UserError, Unusable) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
