"""Duplicate groups: equal to brute force, independent of row order, and right on real posters."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.sparse.csgraph import connected_components

from shards.inputs.duplicates import (
    SIGNATURE_BYTES,
    group_duplicates,
    mirrored_signatures,
    perceptual_hashes,
    poster_signature,
    signatures_agree,
)

POSTERS = Path(__file__).resolve().parents[4] / "shared" / "posters" / "images"


def partition(groups: NDArray[np.int64]) -> set[frozenset[int]]:
    members: dict[int, set[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, set()).add(row)
    return {frozenset(rows) for rows in members.values()}


def blank(n: int) -> NDArray[np.uint8]:
    """Signatures that all agree."""
    return np.zeros((n, SIGNATURE_BYTES), np.uint8)


def brute_force(
    digests: list[str], hashes: NDArray[np.uint64], signatures: NDArray[np.uint8], distance: int
) -> set[frozenset[int]]:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    n = len(hashes)
    a, b = np.divmod(np.arange(n * n), n)
    near &= signatures_agree(signatures[a], signatures[b]).reshape(n, n)
    equal = np.array(digests)[:, None] == np.array(digests)[None]
    _, label = connected_components(near | equal, directed=False)
    return partition(label)


def planted(seed: int, n: int, alike: bool) -> tuple[list[str], NDArray[np.uint64], NDArray[np.uint8]]:
    """Random rows; about half copy an earlier one, with 0 to 12 bits flipped and most signatures kept.

    alike: all signatures are one, so that the hashes alone decide.
    """
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    signatures = rng.integers(0, 256, (n, SIGNATURE_BYTES)).astype(np.uint8)
    signatures[: n // 8] = rng.integers(0, 256, (n // 8, 1))  # blanks
    digests = [f"{k:064x}" for k in range(n)]
    for row in range(1, n):
        if rng.random() < 0.5:
            source = rng.integers(0, row)
            flips = rng.choice(64, rng.integers(0, 13), replace=False).tolist()
            hashes[row] = hashes[source] ^ np.uint64(sum(1 << bit for bit in flips))
            if rng.random() < 0.8:
                noise = rng.integers(-1, 2, SIGNATURE_BYTES) * rng.integers(0, 2)
                signatures[row] = np.clip(signatures[source].astype(int) + noise, 0, 255)
        if rng.random() < 0.05:
            digests[row] = digests[rng.integers(0, row)]
    return digests, hashes, np.full_like(signatures, 90) if alike else signatures


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(0, 15), st.booleans())
def test_equals_brute_force(seed: int, n: int, distance: int, alike: bool) -> None:
    digests, hashes, signatures = planted(seed, n, alike)
    groups = group_duplicates(digests, hashes, signatures, max_distance=distance)
    assert partition(groups) == brute_force(digests, hashes, signatures, distance)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.booleans())
def test_partition_does_not_depend_on_row_order(seed: int, alike: bool) -> None:
    digests, hashes, signatures = planted(seed, 100, alike)
    order = np.random.default_rng(seed).permutation(100)
    moved = group_duplicates([digests[k] for k in order], hashes[order], signatures[order])
    groups = group_duplicates(digests, hashes, signatures)
    assert {frozenset(order[list(rows)].tolist()) for rows in partition(moved)} == partition(groups)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 15), st.booleans())
def test_mirrored_copies_equal_brute_force_on_both_ways_round(seed: int, n: int, distance: int, alike: bool) -> None:
    """Two pictures are one if any way round of the first is near any of the second."""
    digests, hashes, signatures = planted(seed, n, alike)
    rng = np.random.default_rng(seed)
    mirrored = rng.integers(0, 2**64, n, dtype=np.uint64)
    for row in range(1, n, 3):  # mirrored copies of earlier ones
        source = rng.integers(0, row)
        hashes[row], mirrored[row] = mirrored[source] ^ np.uint64(1 << 5), hashes[source]
        signatures[row] = mirrored_signatures(signatures[[source]])[0]
    turned = np.concatenate([signatures, mirrored_signatures(signatures)])
    expected = brute_force(digests * 2, np.concatenate([hashes, mirrored]), turned, distance)
    groups = group_duplicates(digests, hashes, signatures, mirrored=mirrored, max_distance=distance)
    assert partition(groups) == {frozenset(row % n for row in rows) for rows in expected}
    # Nor does it count which way round a picture is.
    flip = rng.random(n) < 0.5
    again = group_duplicates(
        digests,
        np.where(flip, mirrored, hashes),
        np.where(flip[:, None], mirrored_signatures(signatures), signatures),
        mirrored=np.where(flip, hashes, mirrored),
        max_distance=distance,
    )
    assert again.tolist() == groups.tolist()


def test_groups_are_numbered_by_first_appearance() -> None:
    hashes = np.array([2**40 - 1, 0, 2**40 - 1, 2**63 + 2**20 - 1, 0], dtype=np.uint64)
    groups = group_duplicates(list("abcde"), hashes, blank(5))
    assert groups.tolist() == [0, 1, 0, 2, 1]
    assert groups.dtype == np.int64


def test_thousands_of_samples_may_share_a_hash() -> None:
    rng = np.random.default_rng(1)
    n = 6000
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    hashes[:4000] = 7
    signatures = rng.integers(0, 256, (n, SIGNATURE_BYTES)).astype(np.uint8)
    # 2,000 encodings of one picture, then 2,000 solid colours, blank and all different.
    noise = rng.integers(-1, 2, (2000, SIGNATURE_BYTES))
    signatures[:2000] = np.clip(signatures[0].astype(int) + noise, 0, 255)
    colours = np.stack(np.unravel_index(rng.permutation(16**3)[:2000], (16, 16, 16)), 1) * 16
    signatures[2000:4000] = np.tile(colours, 64)
    sizes = np.bincount(group_duplicates([str(k) for k in range(n)], hashes, signatures))
    assert sorted(sizes.tolist())[-2:] == [1, 2000]


def test_equal_files_are_grouped_whatever_their_hashes() -> None:
    hashes = np.array([0, 2**64 - 1, 2**32 - 1], dtype=np.uint64)
    assert group_duplicates(["a", "a", "b"], hashes, blank(3)).tolist() == [0, 0, 1]


def test_no_samples() -> None:
    assert group_duplicates([], np.zeros(0, np.uint64), blank(0)).shape == (0,)


def grouped(images: list[Image.Image]) -> NDArray[np.int64]:
    hashes = np.array([perceptual_hashes(image) for image in images], dtype=np.uint64)
    signatures = np.frombuffer(b"".join(poster_signature(image) for image in images), np.uint8)
    return group_duplicates(
        [str(k) for k in range(len(images))],
        hashes[:, 0],
        signatures.reshape(-1, SIGNATURE_BYTES),
        mirrored=hashes[:, 1],
    )


def encoded(image: Image.Image, **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return Image.open(buffer).convert("RGB")


def test_a_hash_has_64_bits_and_ignores_the_mode() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (268, 182, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    code, _ = perceptual_hashes(image)
    assert 2**63 <= code < 2**64
    assert perceptual_hashes(image.convert("RGBA"))[0] == code
    assert len(poster_signature(image.convert("L"))) == SIGNATURE_BYTES


def test_the_second_hash_is_that_of_the_mirror_image() -> None:
    for seed in range(20):
        coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((181, 268), Image.Resampling.BICUBIC)
        (own, turned), (other, back) = perceptual_hashes(image), perceptual_hashes(ImageOps.mirror(image))
        assert own != turned
        assert (turned ^ other).bit_count() <= 2 and (own ^ back).bit_count() <= 2  # but for rounding
        signature = np.frombuffer(poster_signature(image), np.uint8)
        mirrored = np.frombuffer(poster_signature(ImageOps.mirror(image)), np.uint8).astype(int)
        # but for the columns between two cells
        assert np.abs(mirrored_signatures(signature[None])[0] - mirrored).max() <= 4


def test_a_symmetrical_picture_is_a_copy_of_itself_alone() -> None:
    """Its hash and its mirror image's are one: what is unlike it must stay so."""
    halves = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 3, 3)).astype(np.uint8)) for seed in range(12)
    ]
    whole = []
    for half in halves:
        half = half.resize((90, 268), Image.Resampling.BICUBIC)
        sheet = Image.new("RGB", (180, 268))
        sheet.paste(half, (0, 0))
        sheet.paste(ImageOps.mirror(half), (90, 0))
        whole.append(sheet)
    assert grouped(whole).tolist() == list(range(12))


def test_blank_pictures_match_blanks_of_their_colour_only() -> None:
    black, white, red, green, grey = (0, 0, 0), (255,) * 3, (200, 30, 30), (30, 200, 30), (81,) * 3
    colours = [black, white, red, green, grey, black, red]
    groups = grouped([encoded(Image.new("RGB", (182, 268), colour), quality=60) for colour in colours])
    assert groups.tolist() == [0, 1, 2, 3, 4, 0, 2]


def test_one_layout_in_two_colours_is_not_a_duplicate() -> None:
    sheets = []
    for colour in ((200, 40, 40), (40, 90, 220)):
        sheet = Image.new("RGB", (182, 268), "white")
        sheet.paste(colour, (30, 60, 150, 140))
        sheets.append(sheet)
    assert grouped(sheets).tolist() == [0, 1]
    assert grouped([sheets[0], sheets[0].convert("L")]).tolist() == [0, 0]


def real_posters(count: int) -> list[Image.Image]:
    if not POSTERS.is_dir():
        pytest.skip(f"real posters are not at {POSTERS}")
    paths = random.Random(5).sample(sorted(POSTERS.glob("*.jpg")), count)
    return [Image.open(path).convert("RGB") for path in paths]


def test_real_posters_are_grouped_with_their_variants_only() -> None:
    originals = real_posters(60)
    images, owner = list(originals), list(range(60))
    for k, image in enumerate(originals):
        width, height = image.size
        variants = [
            encoded(image, quality=50),
            encoded(image.resize((width // 2, height // 2)), quality=80),
            encoded(image.resize((width * 500 // height, 500)), quality=95),
            ImageEnhance.Brightness(image).enhance(1.1),
            ImageEnhance.Brightness(image).enhance(0.9),
            ImageEnhance.Contrast(image).enhance(1.1),
            image.convert("L"),
        ]
        images += variants
        owner += [k] * len(variants)
    assert partition(grouped(images)) == partition(np.array(owner))


def test_mirrored_real_posters_are_grouped_with_their_original() -> None:
    originals = real_posters(60)
    images, owner = list(originals), list(range(60))
    for k, image in enumerate(originals):
        other = ImageOps.mirror(image)
        half = other.resize((other.width // 2, other.height // 2))
        variants = [other, encoded(other, quality=50), half, ImageEnhance.Brightness(other).enhance(1.1)]
        images += variants
        owner += [k] * len(variants)
    assert partition(grouped(images)) == partition(np.array(owner))


def test_cropped_and_framed_real_posters_are_mostly_found() -> None:
    originals = real_posters(100)
    cropped = [image.crop((4, 5, image.width - 4, image.height - 5)) for image in originals]
    framed = [ImageOps.expand(image, 2, "black") for image in originals]
    groups = grouped(originals + cropped + framed)
    own = groups[:100]
    assert len(set(own.tolist())) == 100
    assert (groups[100:200] == own).mean() >= 0.95
    assert (groups[200:] == own).mean() >= 0.97


def test_few_real_posters_are_duplicates() -> None:
    sizes = np.bincount(grouped(real_posters(1500)))
    # All 4,000 hold three pairs: two repeated pictures and one sleeve shared by two films.
    assert len(sizes) >= 1497
    assert sizes.max() <= 2
