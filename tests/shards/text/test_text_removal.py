"""The loop of one poster: looks take turns, every painting is of the original, and it always ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tools import Bright, Scripted, region

from shards.text.detector import Region
from shards.text.masks import MaskOptions, mask_of, outlines, text_mask
from shards.text.pipeline import Removal, remove_text

SHAPE = (120, 80)
ABOVE, BELOW = region((10, 10, 70, 20)), region((10, 90, 70, 100))
FIGURE = region((0, 0, 79, 119))
IMAGE = np.random.default_rng(0).integers(0, 200, (*SHAPE, 3)).astype(np.uint8)
OPTIONS = MaskOptions()


def grey(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A fill that cannot be mistaken."""
    out = image.copy()
    out[mask] = 128
    return out


def run(
    answers: Sequence[Sequence[Region]], looks: int = 1, passes: int = 4, options: MaskOptions = OPTIONS
) -> tuple[Removal, list[int]]:
    detector = Scripted(answers, looks)
    return remove_text(IMAGE, detector, grey, options, passes), detector.seen


def test_a_poster_without_text_keeps_its_pixels() -> None:
    result, seen = run([], looks=3)
    assert seen == [0, 1, 2]
    assert (result.image == IMAGE).all() and not result.mask.any()
    assert (result.passes, result.before, result.after) == (0, 0, 0)
    assert (result.text_before, result.text_after, result.skipped) == (0.0, 0.0, [])


def test_looks_take_turns_until_every_one_is_quiet() -> None:
    result, seen = run([[ABOVE], [], [BELOW], [], []], looks=2)
    assert seen == [0, 1, 0, 1, 0]
    assert (result.passes, result.before, result.after) == (2, 1, 0)
    assert result.mask[15, 40] and result.mask[95, 40] and not result.mask[60, 40]
    assert result.text_before == text_mask([ABOVE], SHAPE).mean()


def test_what_only_the_second_look_finds_goes_too() -> None:
    result, seen = run([[], [ABOVE], [], []], looks=2)
    assert seen == [0, 1, 0, 1] and result.passes == 1 and result.before == 1 and result.mask[15, 40]


def test_only_the_mask_changes() -> None:
    given_image = IMAGE.copy()
    result, _ = run([[ABOVE], [BELOW]])
    assert (result.image[~result.mask] == IMAGE[~result.mask]).all() and (given_image == IMAGE).all()
    assert (result.image[result.mask] == 128).all()
    assert (mask_of(outlines(result.mask), SHAPE) == result.mask).all()


def test_passes_are_bounded_and_the_last_act_is_a_look() -> None:
    """Text that is found somewhere else each time."""
    wandering = [[region((5, top, 60, top + 6))] for top in range(0, 110, 12)]
    for passes in (1, 2, 5):
        result, seen = run(wandering, passes=passes)
        assert result.passes == passes and len(seen) == passes + 1
        assert result.after == 1 and result.text_after > 0


def test_text_that_comes_back_at_its_place_ends_the_loop_and_is_reported() -> None:
    result, seen = run([[ABOVE]] * 50, passes=10)
    assert len(seen) == 2 and result.passes == 1
    assert (result.before, result.after) == (1, 1) and result.text_after == result.text_before > 0


def test_what_is_never_believed_is_left_alone_and_told() -> None:
    result, seen = run([[FIGURE]] * 50, looks=2)
    assert len(seen) == 2 and result.passes == 0 and (result.image == IMAGE).all()
    assert [skip.region for skip in result.skipped] == [FIGURE] * 2
    assert {skip.reason for skip in result.skipped} == {"larger than 40% of the picture"}
    assert (result.before, result.after, result.text_after) == (0, 0, 0.0)


def test_skipped_is_what_the_last_looks_left() -> None:
    result, _ = run([[ABOVE, FIGURE], []])
    assert result.passes == 1 and result.skipped == []


def test_text_without_room_counts_as_left() -> None:
    result, seen = run([[ABOVE]] * 50, options=MaskOptions(max_total=0.01))
    assert len(seen) == 1 and result.passes == 0 and result.after == 1
    assert [skip.reason for skip in result.skipped] == ["over the limit of 1% of the picture"]


def test_text_without_room_was_there_before_too() -> None:
    result, _ = run([[ABOVE], []], looks=2, options=MaskOptions(max_total=0.01))
    assert result.after == 1 and result.before == 1 and result.text_before >= result.text_after > 0


def test_every_painting_is_of_the_original() -> None:
    """A smear of the first painting would be painted from in the second."""
    seen = []

    def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        seen.append((image.copy(), mask.copy()))
        return grey(image, mask)

    remove_text(IMAGE, Scripted([[ABOVE], [BELOW]]), fill, OPTIONS)
    assert len(seen) == 2 and all((image == IMAGE).all() for image, _ in seen)
    assert (seen[0][1] <= seen[1][1]).all() and seen[0][1].sum() < seen[1][1].sum()


def test_a_detector_sees_the_painted_picture() -> None:
    image = np.full((*SHAPE, 3), 60, np.uint8)
    image[40:60, 20:60] = 255
    result = remove_text(image, Bright(), grey, OPTIONS)
    assert (result.before, result.after, result.passes) == (1, 0, 1) and result.image.max() == 128


boxes = st.tuples(st.floats(-10, 90), st.floats(-10, 130), st.floats(1, 60), st.floats(1, 60)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
answer = st.lists(st.builds(region, boxes, st.floats(0, 1)), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(answer, max_size=12), st.integers(1, 4), st.integers(1, 5), st.floats(0.02, 1))
def test_whatever_is_found_the_loop_ends(answers: list[list[Region]], looks: int, passes: int, most: float) -> None:
    result, seen = run(answers, looks, passes, MaskOptions(max_total=most))
    assert result.passes <= passes and len(seen) <= (passes + 1) * looks
    assert seen == [number % looks for number in range(len(seen))]
    assert set(seen) == set(range(looks))
    assert result.mask.any() == (result.passes > 0)
    assert (result.image[~result.mask] == IMAGE[~result.mask]).all()
    last = [r for number in range(looks) for r in answers_of(answers, seen, number)]
    assert result.after + sum(s.reason[:4] != "over" for s in result.skipped) == len(last)


def answers_of(answers: list[list[Region]], seen: list[int], look: int) -> list[Region]:
    """What the last look of that kind found."""
    number = max(n for n, each in enumerate(seen) if each == look)
    return answers[number] if number < len(answers) else []
