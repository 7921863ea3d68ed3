"""What a view needs of its image: never too little, and not much more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_tools import decode_rgb, fast, jpeg, picture, sizes, worst

from shards.inputs.images import ANY, decode
from toolkit.config.schema import DataConfig
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import DecodedTransform, DeviceTransform, eval_transforms
from toolkit.data.transforms.crops import Views, eval_views, resized_size, train_views
from toolkit.data.transforms.preprocessing import FITS, Preprocessing, stretch

lengths = st.integers(1, 900)


def one(width: int, height: int, box: tuple[int, int, int, int], side: int) -> Views:
    zero = np.array([[0, 0]])
    return Views(
        side, np.array([width]), np.array([height]), np.array([box]), np.array([[side, side]]), zero, np.array([False])
    )


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, st.integers(0, 2**40), st.sampled_from([32, 224]))
def test_a_training_crop_needs_the_rows_of_its_box_at_most(width, height, seed, side):
    views = train_views(DataConfig(image_size=side), seed, 0, np.arange(3), np.full(3, width), np.full(3, height))
    last = views.last_rows()
    assert (last <= views.boxes[:, 3]).all() and (last > views.boxes[:, 1]).all()
    denominators = views.denominators()
    rows = views.decoded_rows(denominators)
    assert (rows <= last + 2 * denominators + 15).all()  # little more than is needed
    assert (rows >= last).all() and (rows <= height).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from([16, 64]), st.sampled_from([1.0, 0.875]))
def test_rows_that_the_evaluation_leaves_out_have_no_weight(width, height, side, crop_pct):
    views = eval_views(side, crop_pct, np.array([width]), np.array([height]))
    scale = float(views.scales()[0, 1])
    last_centre = (int(views.corners[0, 1]) + side - 0.5) * scale
    for row in range(int(views.last_rows()[0]), height):
        assert abs(row + 0.5 - last_centre) >= max(scale, 1.0)  # outside of the triangle


def test_how_much_smaller_an_image_may_be_decoded():
    sides = {100: 1, 399: 1, 400: 2, 799: 2, 800: 4, 1599: 4, 1600: 8, 5000: 8}
    for length, denominator in sides.items():
        assert one(6000, 6000, (0, 0, length, length), 100).denominators().tolist() == [denominator]
    assert one(6000, 6000, (0, 0, 3000, 100), 100).denominators().tolist() == [1]  # the tighter direction decides


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 260), st.integers(3, 260)), min_size=1, max_size=5),
    st.sampled_from([16, 37, 64]),
    st.sampled_from([DecodedTransform, DeviceTransform]),
)
def test_stretching_gives_the_pixels_of_the_reference(shapes, side, cut):
    files = [jpeg(picture(w, h)) for w, h in shapes]
    views = eval_views(side, 0.5, *sizes(files), fit="stretch")
    expected = np.stack([stretch(decode_rgb(data), side) for data in files])
    bound = np.where(views.denominators() > 1, 2.5, 0.5)  # as in test_geometry.py
    assert (worst(fast(files, cut(views)), expected) <= bound).all()


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_the_cutter_takes_the_view_of_the_preprocessing(shard_set: Path, geometry):
    reader = ShardReader.of_split(shard_set, "val")
    micro_batch = MicroBatch(np.arange(len(reader)), np.ones(len(reader), dtype=bool))
    files = [reader.image_bytes(row) for row in range(len(reader))]
    for fit in FITS:
        preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3, fit)
        cut = eval_transforms(reader, preprocessing, geometry, torch.device("cpu"))(micro_batch)
        assert isinstance(cut, (DecodedTransform, DeviceTransform))
        expected = np.stack([preprocessing.square(decode(data, ANY)) for data in files])
        assert worst(fast(files, cut), expected).max() <= 2.5  # a crop instead of a stretch is tens away


def test_stretching_sees_the_whole_image():
    views = eval_views(64, 0.5, np.array([182, 500]), np.array([268, 100]), "stretch")
    assert views.boxes.tolist() == [[0, 0, 182, 268], [0, 0, 500, 100]]
    assert views.resized.tolist() == [[64, 64]] * 2 and views.corners.tolist() == [[0, 0]] * 2


def test_resize_truncates_the_long_side_as_torchvision_does():
    assert resized_size(182, 268, 224, 0.875) == (256, 376)
    assert resized_size(268, 182, 224, 1.0) == (329, 224)
    assert resized_size(5, 5, 16, 1.0) == (16, 16)
