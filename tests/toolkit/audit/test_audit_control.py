"""The control's places: off the text wherever that is possible, of equal area, a function of their key alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("cv2")

from toolkit.audit import control as audit_control
from toolkit.audit.control import MAX_PIECES, Places, generator, pieces_of, visible
from toolkit.data.transforms.preprocessing import center_crop, view_box

WHOLE = (0, 0, 10_000, 10_000)


def boxes_mask(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for top, left, tall, wide in boxes:
        mask[top % height : top % height + tall, left % width : left % width + wide] = True
    return mask


some_boxes = st.lists(
    st.tuples(st.integers(0, 79), st.integers(0, 59), st.integers(1, 30), st.integers(1, 50)), min_size=1, max_size=5
)


def free_place_exists(text: np.ndarray, shape: np.ndarray) -> bool:
    """By trying them all."""
    height, width = shape.shape
    return any(
        not (text[y : y + height, x : x + width] & shape).any()
        for y in range(text.shape[0] - height + 1)
        for x in range(text.shape[1] - width + 1)
    )


@settings(max_examples=40, deadline=None)
@given(some_boxes, st.integers(0, 3), st.sampled_from([40, 512]))
def test_never_on_text_and_of_equal_area_where_there_is_room(boxes, draw, grid):
    text = boxes_mask(80, 60, boxes)
    before = audit_control.GRID
    audit_control.GRID = grid  # 40: places are looked for on a coarser grid first, as on large posters
    try:
        places = Places(text, WHOLE)
    finally:
        audit_control.GRID = before
    control = places.draw(generator(0, "x", draw))
    assert not (control.mask & text).any()
    assert control.mask.sum() <= text.sum()
    if control.clear:
        assert control.mask.sum() == text.sum()
    if len(places.pieces) == 1:
        assert control.clear == free_place_exists(text, places.pieces[0].shape)


def test_each_region_is_moved_whole_and_on_its_own():
    text = boxes_mask(120, 90, [(100, 5, 10, 60), (5, 5, 8, 20), (20, 30, 5, 5)])
    control = Places(text, WHOLE).draw(generator(0, "a", 0))
    assert control.clear
    sizes = sorted(int(piece.shape.sum()) for piece in pieces_of(control.mask))
    if len(sizes) == 3:  # regions may come to lie side by side
        assert sizes == [25, 160, 600]
    assert control.mask.sum() == text.sum()


def test_a_function_of_seed_id_and_draw():
    text = boxes_mask(90, 60, [(70, 5, 12, 40), (5, 5, 6, 20)])
    places = Places(text, WHOLE)
    first = places.draw(generator(1, "a", 0)).mask
    places.draw(generator(1, "b", 3))
    assert (places.draw(generator(1, "a", 0)).mask == first).all()
    assert (Places(text, WHOLE).draw(generator(1, "a", 0)).mask == first).all()
    others = [places.draw(generator(*key)).mask for key in ((1, "a", 1), (2, "a", 0), (1, "c", 0))]
    assert all((other != first).any() for other in others)


def test_no_room_means_the_least_overlap_which_is_not_painted():
    text = boxes_mask(60, 40, [(20, 0, 40, 40)])  # two thirds of the picture; 20 rows are left of 40
    control = Places(text, WHOLE).draw(generator(0, "x", 0))
    assert not control.clear
    assert control.mask.sum() == 20 * 40 and not (control.mask & text).any()
    everything = Places(np.ones((30, 20), bool), WHOLE).draw(generator(0, "x", 0))
    assert not everything.clear and not everything.mask.any()


def test_as_much_of_the_control_is_in_the_models_view_as_of_the_text():
    view = (0, 30, 60, 90)  # the central square of a 60x120 poster
    text = boxes_mask(120, 60, [(84, 5, 12, 30), (100, 5, 10, 40)])  # half inside, all outside
    places = Places(text, view)
    for draw in range(10):
        mask = places.draw(generator(0, "x", draw)).mask
        assert mask.sum() == text.sum()
        assert abs(visible(mask, view) - visible(text, view)) <= 0.05 * text.sum()


def test_many_letters_become_fewer_regions_of_the_same_pixels():
    text = np.zeros((100, 100), bool)
    text[10:60:3, ::3] = True
    pieces = pieces_of(text)
    assert 1 <= len(pieces) <= MAX_PIECES
    assert sum(int(piece.shape.sum()) for piece in pieces) == text.sum()


@pytest.mark.parametrize(("width", "height", "crop_pct"), [(182, 268, 1.0), (300, 200, 0.875), (64, 64, 0.5)])
def test_the_view_is_what_center_crop_keeps(width: int, height: int, crop_pct: float):
    left, top, right, bottom = view_box(width, height, 32, crop_pct)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    seen = center_crop(Image.fromarray(pixels), 32, crop_pct)
    assert seen[1:-1, 1:-1].min() > 200  # all that it keeps was inside ...
    outside = 255 - pixels
    assert center_crop(Image.fromarray(outside), 32, crop_pct)[2:-2, 2:-2].max() == 0  # ... but the blur's rim
    assert (right - left) * (bottom - top) < width * height or (width == height and crop_pct == 1.0)
