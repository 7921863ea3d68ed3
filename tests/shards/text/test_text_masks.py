"""From regions to masks: how far they reach, what is not believed, and that polygons say it all."""

from __future__ import annotations

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_fill_holes
from text_tools import region

from shards.text.masks import MIN_SCORES, MaskOptions, accepted, doubt, mask_of, outlines, paint_mask, text_mask

SHAPE = (200, 100)
NOTHING = np.zeros(SHAPE, bool)

boxes = st.tuples(*[st.floats(-20, 220)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
regions = st.lists(st.builds(region, boxes, st.floats(0, 1)), max_size=5)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the marked pixels."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


@pytest.mark.parametrize(
    ("height", "margin", "grown"), [(40, 0.2, 8), (20, 0.2, 4), (20, 0.5, 10), (10, 0.0, 1), (2, 0.2, 1)]
)
def test_the_margin_is_in_proportion_to_the_letters(height: float, margin: float, grown: int) -> None:
    mask, _ = paint_mask([region((40, 90, 60, 110), height=height)], SHAPE, MaskOptions(margin), NOTHING)
    assert box_of(mask) == (40 - grown, 90 - grown, 60 + grown, 110 + grown)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_outlines_give_a_mask_without_holes_again(mask: np.ndarray) -> None:
    whole = binary_fill_holes(mask)
    assert (mask_of(outlines(whole), mask.shape) == whole).all()
    assert (mask_of(outlines(mask), mask.shape) == whole).all()
    for polygon in outlines(mask):
        assert len(polygon) % 2 == 0 and all(type(number) is int for number in polygon)


def test_no_mask_has_no_outline() -> None:
    assert outlines(NOTHING) == [] and not mask_of([], SHAPE).any()
    assert mask_of(outlines(~NOTHING), SHAPE).all()


@settings(max_examples=60, deadline=None)
@given(regions, st.floats(0, 2), st.floats(0.01, 1))
def test_a_mask_holds_its_regions_and_stays_in_bounds(found: list, margin: float, most: float) -> None:
    options = MaskOptions(margin, max_total=most)
    painted = NOTHING.copy()
    painted[:3, :3] = True
    mask, skipped = paint_mask(found, SHAPE, options, painted)
    left_out = {id(skip.region) for skip in skipped}
    assert mask[painted].all() and painted.sum() == 9
    for each in found:
        if id(each) not in left_out:
            assert mask[text_mask([each], SHAPE)].all()
    assert (mask_of(outlines(mask), SHAPE) == mask).all()
    if len(left_out) == len(found):
        assert (mask == painted).all()


def test_a_hole_in_a_ring_of_text_is_painted_too() -> None:
    ring = [region(b) for b in ((20, 50, 80, 60), (20, 90, 80, 100), (20, 50, 30, 100), (70, 50, 80, 100))]
    mask, _ = paint_mask(ring, SHAPE, MaskOptions(), NOTHING)
    assert mask[75, 50] and not text_mask(ring, SHAPE)[75, 50]


def test_a_frame_of_text_around_a_poster_does_not_take_the_poster() -> None:
    frame = [region(b) for b in ((2, 2, 98, 6), (2, 194, 98, 198), (2, 2, 6, 198), (94, 2, 98, 198))]
    mask, _ = paint_mask(frame, SHAPE, MaskOptions(max_total=0.5), NOTHING)
    assert mask.mean() <= 0.5


def test_too_large_a_region_is_doubted_however_sure() -> None:
    figure = region((0, 0, 99, 99), score=1.0)
    assert doubt(figure, SHAPE, MaskOptions()) == "larger than 40% of the picture"
    assert doubt(figure, SHAPE, MaskOptions(max_region=0.6)) == ""


@pytest.mark.parametrize(("share", "score"), MIN_SCORES)
def test_a_large_region_needs_certainty(share: float, score: float) -> None:
    rows = int(SHAPE[0] * share) + 2
    for sure, doubted in ((score + 0.01, False), (score - 0.01, True)):
        large = region((0, 0, 99, rows), score=sure)
        reason = doubt(large, SHAPE, MaskOptions())
        assert reason == (f"larger than {share:.0%} of the picture and uncertain" if doubted else "")
    assert doubt(region((0, 0, 99, 2), score=0.01), SHAPE, MaskOptions()) == ""


@given(regions)
@settings(max_examples=40, deadline=None)
def test_every_region_is_believed_or_doubted_with_a_reason(found: list) -> None:
    kept, doubted = accepted(found, SHAPE, MaskOptions())
    assert {id(r) for r in kept} | {id(s.region) for s in doubted} == {id(r) for r in found}
    assert len(kept) + len(doubted) == len(found) and all(skip.reason for skip in doubted)


def test_the_least_certain_have_no_room() -> None:
    bands = [region((0, top, 99, top + 40), score, height=1) for top, score in ((0, 0.7), (60, 0.9), (120, 0.8))]
    mask, skipped = paint_mask(bands, SHAPE, MaskOptions(max_total=0.5), NOTHING)
    assert [skip.region for skip in skipped] == [bands[0]]
    assert skipped[0].reason == "over the limit of 50% of the picture"
    assert mask[80, 50] and mask[140, 50] and not mask[20, 50]


def test_what_was_painted_before_takes_room() -> None:
    painted = NOTHING.copy()
    painted[100:] = True
    mask, skipped = paint_mask([region((0, 0, 99, 40))], SHAPE, MaskOptions(max_total=0.6), painted)
    assert len(skipped) == 1 and (mask == painted).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"margin": -0.1}, "--margin"),
        ({"margin": 2.1}, "--margin"),
        ({"margin": float("nan")}, "--margin"),
        ({"max_region": 0.0}, "--max-region"),
        ({"max_region": 1.1}, "--max-region"),
        ({"max_total": 0.0}, "--max-total"),
        ({"max_total": float("nan")}, "--max-total"),
    ],
)
def test_options_out_of_range(values: dict[str, float], words: str) -> None:
    with fails("option-value", words):
        MaskOptions(**values)
