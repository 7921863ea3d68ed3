"""Private names of libraries: each does what this toolkit needs of it, and no other file uses one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toolkit.device.compat import (
    BatchNorm,
    change_class,
    copy_tensors,
    in_backward,
    lerp_tensors,
    names_that_torch_allows,
    uncompiled,
    upsample_into,
)

ROOT = Path(__file__).parents[3]
#: Packages of ours, and those whose underscores are public (namedtuples, ctypes) or ours to read.
LIBRARIES = {"accelerate", "jsonargparse", "np", "numpy", "timm", "torch", "torchvision", "nn", "webdataset", "dist"}

#: What objects of theirs are called.
OBJECTS = {"accelerator", "layer", "model", "module", "optimizer", "scaler"}


@pytest.mark.parametrize("size", [(5, 9), (40, 31), (1, 1)])
def test_resizing_into_an_array_is_what_interpolate_does(size: tuple[int, int]):
    images = torch.randint(0, 256, (1, 23, 17, 4), dtype=torch.uint8).permute(0, 3, 1, 2)  # as decoders give them
    out = torch.empty((1, *size, 4), dtype=torch.uint8).permute(0, 3, 1, 2)
    upsample_into(images, size, False, None, None, out=out)
    assert torch.equal(out, F.interpolate(images, size, mode="bilinear", antialias=True))


def test_lists_of_tensors_are_copied_and_moved_as_single_tensors():
    own, values = ([torch.randn(3), torch.randn(2, 2)] for _ in range(2))
    expected = [tensor.lerp(value, 0.3) for tensor, value in zip(own, values, strict=True)]
    lerp_tensors(own, values, weight=0.3)
    assert all(map(torch.equal, own, expected))
    copy_tensors(own, values)
    assert all(map(torch.equal, own, values))


def test_a_recomputed_forward_pass_is_inside_the_backward_pass():
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(in_backward())
        return x.sin().sin()  # whose derivative wants x and sin(x) again

    x = torch.ones(1, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert seen == [False, True] and not in_backward()


def test_names_that_torch_allows_are_those_that_it_loads(tmp_path: Path):
    torch.save({"weights": torch.zeros(2), "kind": torch.float16}, tmp_path / "plain.pt")
    torch.load(tmp_path / "plain.pt", weights_only=True)
    allowed = names_that_torch_allows()
    assert {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.float16"} <= allowed
    torch.save(Path("x"), tmp_path / "other.pt")
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "other.pt")
    assert foreign and not allowed & set(foreign)


def test_every_batchnorm_is_one():
    norms = (nn.BatchNorm1d(1), nn.BatchNorm2d(1), nn.BatchNorm3d(1), nn.SyncBatchNorm(1), nn.LazyBatchNorm2d())
    assert all(isinstance(norm, BatchNorm) for norm in norms)
    assert not isinstance(nn.GroupNorm(1, 1), BatchNorm) and not isinstance(nn.InstanceNorm2d(1), BatchNorm)
    model = timm.create_model("efficientnet_b0", num_classes=1)  # norms of timm's own, with activations
    names = [type(m).__name__ for m in model.modules() if list(m.named_buffers(recurse=False))]
    assert names and len(names) == sum(isinstance(m, BatchNorm) for m in model.modules())


def test_what_was_compiled_is_found_in_its_wrapper():
    layer = nn.Linear(1, 1)
    assert uncompiled(torch.compile(layer)) is layer  # type: ignore[arg-type]


def test_an_object_of_another_class_keeps_its_weights_and_hooks():
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer, x, calls = nn.Linear(3, 2), torch.randn(4, 3), []
    before, weight = layer(x), layer.weight
    layer.register_forward_hook(lambda *_: calls.append(1))
    change_class(layer, Doubled)
    assert torch.equal(layer(x), 2 * before) and layer.weight is weight and calls


def private_names(path: Path) -> Iterator[str]:
    """``library._name`` of each private name of a library that a file uses, and classes that it changes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if parts[0] in LIBRARIES:
                yield from (".".join(parts) for part in parts if part.startswith("_") and part != "__version__")
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            private = node.attr.startswith("_") and not node.attr.endswith("__")
            if (private and whole.split(".")[0] in LIBRARIES | OBJECTS) or (
                node.attr == "__class__" and isinstance(node.ctx, ast.Store)
            ):
                yield whole


def test_private_names_are_gathered_in_one_module():
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in ("shards", "toolkit", "launch")
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / "toolkit" / "device" / "compat.py"
        for name in private_names(path)
    }
    assert not found


def test_a_private_name_is_seen(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from torch._C import x\nimport torch\ntorch._C.y()\naccelerator._models = []\nmodel.__class__ = dict\n"
    )
    found = {"torch._C.x", "torch._C", "accelerator._models", "model.__class__"}
    assert set(private_names(script)) == found


def test_webdatasets_writer_comes_without_torch():
    code = (
        "import sys; from shards.build.tar_writer import tar_writer; writer = tar_writer(); "
        "print(writer.__name__, 'torch' in sys.modules, 'webdataset' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["TarWriter", "False", "False"]
