"""Painting over: nothing outside of the mask changes, and inside are the colours of the surroundings."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shards.text.inpaint import FILLS, membrane, surround
from shards.text.registry import make_fill


@st.composite
def pictures(draw: st.DrawFn, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask: boxes, a single pixel, any pattern, everything or nothing, at any border."""
    height, width = draw(st.integers(least, 40)), draw(st.integers(least, 40))
    seed = draw(st.integers(0, 1000))
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), bool)
    kind = draw(st.sampled_from(("empty", "full", "pixel", "boxes", "any")))
    if kind == "full":
        mask[:] = True
    elif kind == "pixel":
        mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    elif kind == "boxes":
        for _ in range(draw(st.integers(1, 3))):
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            mask[top : top + draw(st.integers(1, 40)), left : left + draw(st.integers(1, 40))] = True
    elif kind == "any":
        mask = draw(arrays(bool, (height, width)))
    return image, mask


@pytest.mark.parametrize("name", FILLS)
def test_only_the_mask_changes_and_twice_is_the_same(name: str) -> None:
    fill = make_fill(name)
    least = 1 if name == "surround" else 3  # thinner ones: see SHAPES

    @settings(max_examples=60, deadline=None)
    @given(pictures(least))
    def holds(picture: tuple[np.ndarray, np.ndarray]) -> None:
        image, mask = picture
        given_image, given_mask = image.copy(), mask.copy()
        out = fill(image, mask)
        assert out.shape == image.shape and out.dtype == np.uint8 and not np.shares_memory(out, image)
        assert (out[~mask] == image[~mask]).all()
        assert (image == given_image).all() and (mask == given_mask).all()
        assert (fill(image, mask) == out).all() and (make_fill(name)(image, mask) == out).all()

    holds()


@pytest.mark.parametrize("name", FILLS)
def test_read_only_pixels_are_good_enough(name: str) -> None:
    """np.asarray of a Pillow image is read-only."""
    image = np.full((20, 20, 3), 90, np.uint8)
    image.flags.writeable = False
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    out = make_fill(name)(image, mask).astype(int)
    assert np.abs(out - 90).max() <= (2 if name == "telea" else 0)


SHAPES = {"inside": (64, 48), "top left": (40, 31), "one row": (1, 30), "two columns": (30, 2)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(name, shape, id=f"{name} {what}") for name in FILLS for what, shape in SHAPES.items()],
)
def test_what_is_under_the_mask_plays_no_part(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    top, left = (0, 0) if shape == SHAPES["top left"] else (shape[0] // 3, shape[1] // 3)
    mask[top : top + 9, left : left + 9] = True
    other = image.copy()
    other[mask] = 255 - other[mask]
    assert (make_fill(name)(image, mask) == make_fill(name)(other, mask)).all()


def ramp(height: int, width: int, down: float, across: float) -> np.ndarray:
    """A linear gradient about middle grey; the channels run differently."""
    y, x = np.mgrid[:height, :width] - np.array([height, width]).reshape(2, 1, 1) / 2
    return np.clip(128 + np.stack([down * y + across * x, down * y, -across * x], axis=2), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("down", "across"), [(0.6, 0.0), (0.0, 0.9), (0.5, -0.4)])
def test_surround_continues_a_gradient(down: float, across: float) -> None:
    """One mean colour, a bar, would be off by 15 levels and more."""
    image = ramp(120, 200, down, across)
    mask = np.zeros((120, 200), bool)
    mask[30:90, 30:170] = True
    spoilt = image.copy()
    spoilt[mask] = 255
    error = np.abs(surround(spoilt, mask)[mask].astype(int) - image[mask])
    assert np.quantile(error, 0.99) <= 5 and error.mean() <= 2.5
    bar = np.abs(image[mask] - image[~mask].mean(axis=0))
    assert bar.max() > 15, "the test itself: a bar would be seen"


@settings(max_examples=40, deadline=None)
@given(pictures(), st.tuples(*[st.integers(0, 255)] * 3))
def test_surround_on_a_flat_colour_is_that_colour(
    picture: tuple[np.ndarray, np.ndarray], colour: tuple[int, int, int]
) -> None:
    image, mask = picture
    image[:] = colour
    image[mask] = 255 - np.array(colour)
    if not mask.all():
        assert (surround(image, mask) == colour).all()


def test_surround_leaves_no_edge() -> None:
    """Two colours left and right: from row to row and column to column the painting has no step."""
    image = np.full((80, 200, 3), 60, np.uint8)
    image[:, 100:] = 180
    mask = np.zeros((80, 200), bool)
    mask[20:60, 40:160] = True
    painted = surround(image, mask).astype(int)[20:60, 40:160]
    middle = painted[15:25]
    assert np.abs(np.diff(middle, axis=1)).max() <= 12 and np.abs(np.diff(middle, axis=0)).max() <= 6
    assert painted[:, 0].mean() < 75 and painted[:, -1].mean() > 165


def test_surround_has_the_grain_of_its_surroundings() -> None:
    rng = np.random.default_rng(3)
    image = np.clip(120 + rng.normal(0, 4, (100, 100, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[30:70, 30:70] = True
    painted = surround(image, mask)[35:65, 35:65].astype(float)
    assert 2 < painted.std() < 7
    assert abs(painted.mean() - 120) < 3


@st.composite
def fields(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    image, hole = draw(pictures())
    return image.astype(np.float32), hole


@settings(max_examples=80, deadline=None)
@given(fields())
def test_a_membrane_stays_within_its_border(field_hole: tuple[np.ndarray, np.ndarray]) -> None:
    field, hole = field_hole
    out = membrane(field, hole)
    assert out.shape == field.shape and np.isfinite(out).all()
    if hole.all():
        return
    assert (out[~hole] == field[~hole]).all()
    known = field[~hole]
    assert (out >= known.min(axis=0) - 0.01).all() and (out <= known.max(axis=0) + 0.01).all()


def test_a_membrane_is_harmonic() -> None:
    """x * y and x^2 - y^2 solve Laplace's equation: on a hole they are found again from their border."""
    y, x = (np.mgrid[:64, :96] / 32.0).astype(np.float32)
    field = np.stack([x * y, x * x - y * y, x + 2 * y], axis=2)
    hole = np.zeros((64, 96), bool)
    hole[20:44, 24:70] = True
    out = membrane(np.where(hole[..., None], 99, field).astype(np.float32), hole)
    span = field[hole].max(axis=0) - field[hole].min(axis=0)
    assert (np.abs(out - field)[hole].max(axis=0) < 0.05 * span).all()


def test_an_unknown_fill_names_the_choices() -> None:
    with fails("option-value", "'blur'", *FILLS, "--fill-model"):
        make_fill("blur")


@pytest.mark.parametrize(("height", "width"), [(300, 90), (257, 61), (90, 300)])
def test_strips_change_no_bit(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(height)
    image = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = random.random((height, width)) < 0.02
    mask[height // 3 : height // 2, 5:-5] = True
    whole = surround(image, mask)
    monkeypatch.setattr("shards.text.inpaint.STRIP", 1)  # the least height
    assert (surround(image, mask) == whole).all()


def test_a_large_picture_takes_some_copies_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.text.inpaint.STRIP", 100_000)
    image = np.zeros((2000, 2000, 3), np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[20:60, 20:-20] = mask[-60:-20, 20:-20] = True
    tracemalloc.start()
    surround(image, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 55 * mask.size  # bytes; three copies of four float32, and a little
