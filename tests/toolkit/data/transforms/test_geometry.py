"""Crops are Pillow's, on the CPU and as matrix products: to a fraction of a grey level, the worst image included."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_tools import fast, jpeg, picture, reference_crops, reference_evals, sizes, worst
from toolkit_helpers import ROOT

from toolkit.config.schema import DataConfig
from toolkit.data.transforms import geometry
from toolkit.data.transforms.batch_transform import DecodedTransform, DeviceTransform
from toolkit.data.transforms.crops import Views, eval_views, train_views
from toolkit.data.transforms.geometry import _weights

REAL = ROOT.parent / "shared"
CUTS = [DecodedTransform, DeviceTransform]
EXACT, SCALED = 0.3, 1.0  # grey levels: mean difference of the worst image, without and with scaled decoding


def views_of(files: list[bytes], side: int, epoch: int = 0, scale: tuple[float, float] = (0.08, 1.0)) -> Views:
    widths, heights = sizes(files)
    config = DataConfig(image_size=side, crop_scale=scale)
    return train_views(config, 0, epoch, np.arange(len(files)), widths, heights)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 260), st.integers(3, 260)), min_size=1, max_size=5),
    st.sampled_from([16, 37, 64]),
    st.integers(0, 1000),
    st.sampled_from(CUTS),
)
def test_training_crops_are_pillows(shapes, side, epoch, cut):
    files = [jpeg(picture(w, h)) for w, h in shapes]
    views = views_of(files, side, epoch)
    found, expected = fast(files, cut(views)), reference_crops(files, views)
    bound = np.where(views.denominators() > 1, 2.5, 0.5)  # small pictures: single pixels weigh more
    assert (worst(found, expected) <= bound).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 260), st.integers(3, 260)), min_size=1, max_size=5),
    st.sampled_from([16, 37, 64]),
    st.sampled_from([1.0, 0.95, 0.875]),
    st.sampled_from(CUTS),
)
def test_evaluation_is_torchvisions(shapes, side, crop_pct, cut):
    files = [jpeg(picture(w, h)) for w, h in shapes]
    views = eval_views(side, crop_pct, *sizes(files))
    found, expected = fast(files, cut(views)), reference_evals(files, side, crop_pct)
    bound = np.where(views.denominators() > 1, 2.5, 0.5)
    assert (worst(found, expected) <= bound).all()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_training_without_crops_sees_what_evaluation_sees_or_mirrored(fit: Literal["crop", "stretch"], cut: type):
    files = [jpeg(picture(w, h)) for w, h in ((90, 130), (200, 70), (64, 64), (150, 220))]
    config = DataConfig(image_size=48, train_crop="none", fit=fit, crop_pct=0.9)
    views = train_views(config, 0, 1, np.arange(4), *sizes(files))
    found, seen = fast(files, cut(views)), fast(files, cut(eval_views(48, 0.9, *sizes(files), fit)))
    assert set(views.flips) == {False, True}
    for row, flip in enumerate(views.flips):
        assert np.abs(found[row] - (seen[row][:, ::-1] if flip else seen[row])).max() <= 1


@pytest.mark.parametrize("cut", CUTS)
def test_without_scaling_decoding_nothing_but_rounding_differs(cut: type):
    """PNG pixels have no decoder in between: at most one grey level, in few places."""
    files = []
    for seed in range(12):
        out = io.BytesIO()
        picture(90, 130, seed).save(out, "PNG")
        files.append(out.getvalue())
    views = views_of(files, 64)
    difference = np.abs(fast(files, cut(views)) - reference_crops(files, views))
    assert difference.max() <= 2 and difference.mean() < 0.1


@pytest.mark.parametrize("cut", CUTS)
def test_a_flip_is_the_mirror_image(cut: type):
    files = [jpeg(picture(70, 90))] * 2
    views = views_of(files[:1] * 2, 48)
    twice = Views(
        48, views.widths, views.heights, views.boxes[[0, 0]], views.resized, views.corners, np.array([False, True])
    )
    plain, mirrored = fast(files, cut(twice))
    assert np.array_equal(plain[:, ::-1], mirrored) and not np.array_equal(plain, mirrored)


def test_a_batch_cut_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch):
    files = [jpeg(picture(60 + 20 * k, 80 + 30 * k)) for k in range(6)]
    views = views_of(files, 40)
    together = fast(files, DeviceTransform(views))
    monkeypatch.setattr(geometry, "CHUNK_PIXELS", 5000)
    assert np.abs(fast(files, DeviceTransform(views)) - together).max() <= 1


def test_packed_images_lie_close_and_need_what_they_say():
    files = [jpeg(picture(60, 500)), jpeg(picture(301, 40)), jpeg(picture(900, 900))]
    cut = DeviceTransform(views_of(files, 32))
    assert cut.size <= 3 * (60 * 500 + 301 * 40 + 900 * 900)
    assert (np.diff(cut.starts) > 0).all()


def packed_posters() -> tuple[DeviceTransform, torch.Tensor, np.ndarray]:
    """A cut of eight posters, its filled slot, and the pixels of the reference."""
    files = [jpeg(picture(182, 268, seed)) for seed in range(8)]
    views = views_of(files, 96)
    cut = DeviceTransform(views)
    buffer = np.zeros(cut.size, dtype=np.uint8)
    for row, data in enumerate(files):
        cut.row(row, memoryview(bytearray(data)), buffer)
    return cut, torch.from_numpy(buffer), reference_crops(files, views)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_keeps_the_bound(dtype: torch.dtype):
    cut, buffer, expected = packed_posters()
    found = cut.geometry(buffer, dtype).float().numpy()
    assert worst(found, expected).max() <= EXACT


def test_the_box_of_a_smaller_decoding_keeps_its_fraction_of_a_pixel():
    """Rounding the box to the smaller grid would shift the picture: a ramp shows by how much."""
    ramp = np.linspace(0, 255, 800)[None, :, None].repeat(800, 0).repeat(3, 2).astype(np.uint8)
    data = jpeg(Image.fromarray(ramp), quality=100, subsampling=0)
    box = np.array([[3, 5, 799, 797]])
    views = Views(
        32, np.array([800]), np.array([800]), box, np.array([[32, 32]]), np.array([[0, 0]]), np.array([False])
    )
    assert views.denominators().tolist() == [8]
    for cut in (DecodedTransform(views), DeviceTransform(views)):
        difference = fast([data], cut) - reference_crops([data], views)
        assert abs(difference[:, 2:-2, 2:-2].mean()) < 0.25  # rounding it to whole eighths would shift by 1


def test_weights_are_pillows_triangle():
    # A box of 7 pixels made 4: one view, its first pixel the source's.
    centres = (torch.arange(4) + 0.5) * 7 / 4
    weights = _weights(torch.arange(7)[None] + 0.5, centres[None], torch.tensor([[7 / 4]]), torch.float32)
    impulses = Image.fromarray(np.eye(7, dtype=np.float32))  # row k has its one at column k
    expected = np.asarray(impulses.resize((4, 7), Image.Resampling.BILINEAR)).T
    np.testing.assert_allclose(weights[0].numpy(), expected, atol=1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real posters are not here")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("folder", "enlarge"), [("posters", 1.0), ("posters_large", 1.0), ("posters_large", 4.0)])
def test_real_posters_stay_within_the_bounds(folder: str, enlarge: float, cut: type):
    files = [path.read_bytes() for path in sorted((REAL / folder / "images").glob("*.jpg"))[:24]]
    if enlarge != 1.0:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        files = [jpeg(i.resize((round(i.width * enlarge), round(i.height * enlarge)))) for i in images]
    views = views_of(files, 224, scale=(0.35, 1.0))
    training = worst(fast(files, cut(views)), reference_crops(files, views))
    whole = eval_views(224, 0.875, *sizes(files))
    evaluation = worst(fast(files, cut(whole)), reference_evals(files, 224, 0.875))
    assert (training <= np.where(views.denominators() > 1, SCALED, EXACT)).all(), training.max()
    assert (evaluation <= np.where(whole.denominators() > 1, SCALED, EXACT)).all(), evaluation.max()
    if enlarge > 1:
        assert (views.denominators() > 1).any() and (whole.denominators() > 1).any()


@pytest.mark.gpu
def test_a_gpu_keeps_the_bound():
    cut, buffer, expected = packed_posters()
    found = cut.images(buffer.cuda()).float().cpu().numpy()
    assert worst(found, expected).max() <= EXACT
