"""Heat maps: where a known model looks, on every head and on backbones of every layout."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from toolkit.app.grad_cam import GradCam, NoHeatMap
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec

HEADS = [
    HeadSpec("linear", (), 0.0),
    HeadSpec("mlp", (8,), 0.5),
    HeadSpec("levels", (), 0.5),
    HeadSpec("ensemble", (8,), 0.5, 3),
]


class Bright(nn.Module):
    """Genre 0 is how much red there is, genre 1 how much green, genre 2 how little blue."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.AvgPool2d(8)
        self.fc = nn.Linear(3, 3, bias=False)
        self.fc.weight.data = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
        self.feature_info = [{"module": "stage", "num_chs": 3, "reduction": 8}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stage(x).mean(dim=(2, 3)))


def quarter(red: tuple[slice, slice], green: tuple[slice, slice]) -> torch.Tensor:
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0][red] = 1.0
    image[0, 1][green] = 1.0
    image[0, 2] = 1.0
    return image


UPPER, LOWER = slice(0, 32), slice(32, 64)


def test_the_heat_is_in_the_quarter_that_the_answer_comes_from():
    cam = GradCam(Bright().eval(), 64)
    assert cam.layout == "maps" and cam.grid == (8, 8)
    image = quarter((UPPER, UPPER), (LOWER, UPPER))
    for genre, (rows, columns) in enumerate([(UPPER, UPPER), (LOWER, UPPER)]):
        heat = cam(image, genre)
        assert heat.shape == (64, 64) and heat.dtype == np.float64
        inside = np.zeros((64, 64), bool)
        inside[rows, columns] = True
        assert heat[inside].sum() > 0.85 * heat.sum() > 0  # the rest is interpolation at the border
        assert heat[4:28, 36:60].max() == 0.0


def test_what_speaks_against_a_genre_is_no_heat():
    heat = GradCam(Bright().eval(), 64)(quarter((UPPER, UPPER), (LOWER, UPPER)), 2)
    assert (heat == 0).all()


def taught(name: str, head: HeadSpec) -> nn.Module:
    """A network that has learnt to tell whether a bright blob is there (genre 1) or not (genre 0)."""
    torch.manual_seed(0)
    model = build_model(name, 2, head, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for step in range(30):
        images, where = blobs(16, step)
        loss = nn.functional.cross_entropy(model(images), (where >= 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 64, 64) grain, in some of which one quarter (0 to 3, else -1) holds a bright disc."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, 64, 64, generator=generator)
    where = torch.randint(-2, 4, (count,), generator=generator).clamp(min=-1)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for image, quarter in zip(images, where.tolist(), strict=True):
        if quarter >= 0:
            top, left = 16 + 32 * (quarter // 2), 16 + 32 * (quarter % 2)
            image[:, (rows - top) ** 2 + (columns - left) ** 2 < 100] += 3.0
    return images, where


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_every_head_shows_where_the_blob_is(head: HeadSpec, one_thread: None):
    model = taught("test_resnet", head)
    cam = GradCam(model, 64)
    images, where = blobs(40, 1000)
    right = total = 0
    for image, quarter in zip(images, where.tolist(), strict=True):
        if quarter >= 0:
            heat = cam(image[None], 1)
            sums = [heat[a, b].sum() for a in (UPPER, LOWER) for b in (UPPER, LOWER)]
            right, total = right + (int(np.argmax(sums)) == quarter), total + 1
    assert total > 20 and right > 0.7 * total, (right, total)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_vit2"])
def test_every_head_on_every_backbone(name: str, head: HeadSpec, one_thread: None):
    size = 160 if "vit" in name else 64
    torch.manual_seed(0)
    model = build_model(name, 3, head, size).eval()
    for parameter in model.parameters():  # as after loading, or frozen: it makes no difference
        parameter.requires_grad_(False)
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        before = model(image)
    maps = [GradCam(model, size)(image, genre) for genre in range(3)]
    assert all(heat.shape == (size, size) and np.isfinite(heat).all() and (heat >= 0).all() for heat in maps)
    assert any(heat.max() > 0 for heat in maps)
    assert not np.array_equal(maps[0], maps[1])
    with torch.no_grad():
        assert torch.equal(model(image), before)  # nothing of it stays in the model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_maps_of_swin_have_their_channels_last(one_thread: None):
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=2, img_size=64, window_size=2, depths=(1, 1, 1, 1)
    ).eval()
    cam = GradCam(model, 64)
    assert cam.layout == "maps_last" and cam.grid == (2, 2)
    image = torch.randn(1, 3, 64, 64)
    assert cam(image, 0).shape == (64, 64) and max(cam(image, genre).max() for genre in (0, 1)) > 0


def test_an_architecture_without_maps_says_so(one_thread: None):
    class Flat(Bright):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Flatten()  # type: ignore[assignment]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stage(x)[:, :3]

    with pytest.raises(NoHeatMap, match="not a map of the picture"):
        GradCam(Flat().eval(), 64)
    model = Bright().eval()
    model.feature_info = []
    with pytest.raises(NoHeatMap, match="timm lists no stages of Bright"):
        GradCam(model, 64)
