"""Find exact and near-duplicate posters, so that all duplicates of a poster can be kept in one split.

Two posters are duplicates if their files are equal (SHA-256), or if both of these conditions are true:

* Their 64-bit perceptual hashes differ in at most ``MAX_DISTANCE`` bits. The hash is the DCT hash of Zauner,
  "Implementation and benchmarking of perceptual image hash functions" (2010).
* Their signatures (8x8 RGB thumbnails) agree, see `signatures_agree`.

Each poster is also compared with the mirror images of other posters, because training flips pictures. A group is a
connected component of the graph of duplicate pairs. Similar hashes are found with multi-index hashing (Norouzi,
Punjani, Fleet, "Fast search in Hamming space with multi-index hashing", 2012). See docs/results/duplicates.md.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_DISTANCE = 10
SIGNATURE_SIDE = 8
SIGNATURE_BYTES = 3 * SIGNATURE_SIDE**2

MIN_LUMA_CORRELATION = 0.85
# Limits in grey levels. RMS is a root mean square, STD is a standard deviation.
MAX_LUMA_RMS = 32.0  # copies that are 10% brighter reach 25
MAX_CHROMA_RMS = 16.0  # the median of random pairs is 34, brighter or cropped copies stay below 14
ACHROMATIC_RMS = 2.0  # a picture with less chroma counts as grey, and its colour is not compared
BLANK_STD = 3.0  # a picture with less luma contrast counts as blank, real posters have 10 or more
BLANK_RMS = 2.5  # blank pictures with a larger difference are not duplicates

_HASH_SIDE = 32
_FLAT = 4.0  # a picture is flat if all its DCT coefficients (without the mean) are smaller
_ROUNDING = 1e-3  # added to the median, so that the rounding error of a coefficient of 0 sets no bit
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PAIRS_AT_ONCE = 1 << 21
_CHECKS_AT_ONCE = 1 << 15
_TABLES = 4
_BITS = 64 // _TABLES

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def _dct_matrix(n: int) -> NDArray[np.float64]:
    k = np.arange(n)
    matrix = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * n)) * np.sqrt(2 / n)
    matrix[0] /= np.sqrt(2)
    return matrix


_DCT = _dct_matrix(_HASH_SIDE)[:8]
#: Factors that turn the coefficients of a picture into the coefficients of its mirror image.
_MIRROR = np.tile([1.0, -1.0], 4)


def perceptual_hashes(image: Image.Image) -> tuple[int, int]:
    """Return the 64-bit DCT hashes of a picture of any size and mode, and of its mirror image.

    The bits stand for the lowest 8x8 DCT coefficients, row by row from bit 63 (the mean) to bit 0. A bit is set if its
    coefficient is above the median of all 64. A flat picture has only noise in bits 62 to 0, so these bits are cleared.
    """
    grey = image.convert("RGB").convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS)
    low = _DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T
    return _hash_bits(low), _hash_bits(low * _MIRROR)


def _hash_bits(low: NDArray[np.float64]) -> int:
    bits = (low > np.median(low) + _ROUNDING).ravel()
    if np.abs(low.ravel()[1:]).max() < _FLAT:
        bits[1:] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def poster_signature(image: Image.Image) -> bytes:
    """Return the pixels of an 8x8 RGB thumbnail of the picture: 192 bytes, row by row."""
    side = (SIGNATURE_SIDE, SIGNATURE_SIDE)
    return image.convert("RGB").resize(side, Image.Resampling.BOX).tobytes()


def mirrored_signatures(signatures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the signatures of the mirror images, (n, 192) uint8."""
    rows = signatures.reshape(-1, SIGNATURE_SIDE, SIGNATURE_SIDE, 3)[:, :, ::-1]
    return rows.reshape(-1, SIGNATURE_BYTES)


def signatures_agree(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (n,) bool: whether the signatures a[i] and b[i] show the same picture. ``a`` and ``b`` are (n, 192).

    Two signatures show the same picture if their luma correlates and their brightness and colour are similar. Colour
    is not compared if one picture is grey. If one picture is blank (no luma contrast), only RGB values are compared.
    """
    rgb_a, rgb_b = (x.reshape(len(x), SIGNATURE_SIDE**2, 3).astype(np.float32) for x in (a, b))
    luma_a, luma_b = rgb_a @ _LUMA, rgb_b @ _LUMA
    # Chroma is red minus luma and blue minus luma. Green is not needed, because it follows from luma, red and blue.
    chroma_a, chroma_b = (rgb_a - luma_a[..., None])[..., ::2], (rgb_b - luma_b[..., None])[..., ::2]
    flat_a, flat_b = luma_a - luma_a.mean(1, keepdims=True), luma_b - luma_b.mean(1, keepdims=True)
    power_a, power_b = (flat_a**2).mean(1), (flat_b**2).mean(1)
    correlation = (flat_a * flat_b).mean(1) / np.sqrt(np.maximum(power_a * power_b, 1e-6))
    grey = np.minimum((chroma_a**2).mean((1, 2)), (chroma_b**2).mean((1, 2))) < ACHROMATIC_RMS**2
    same_colour = ((chroma_a - chroma_b) ** 2).mean((1, 2)) <= MAX_CHROMA_RMS**2
    same_light = ((luma_a - luma_b) ** 2).mean(1) <= MAX_LUMA_RMS**2
    alike = (correlation >= MIN_LUMA_CORRELATION) & same_light & (same_colour | grey)
    blank = np.minimum(power_a, power_b) < BLANK_STD**2
    same_blank = ((rgb_a - rgb_b) ** 2).mean((1, 2)) <= BLANK_RMS**2
    agree: NDArray[np.bool_] = np.where(blank, same_blank, alike)
    return agree


def group_duplicates(
    digests: Sequence[str],
    hashes: NDArray[np.uint64],
    signatures: NDArray[np.uint8],
    mirrored: NDArray[np.uint64] | None = None,
    max_distance: int = MAX_DISTANCE,
) -> NDArray[np.int64]:
    """Return the group number of every sample, (n,) int64. Duplicates have the same number.

    digests: hex SHA-256 of each file. hashes, mirrored: (n,) uint64 each, the first and second result of
    `perceptual_hashes`. Mirrored copies are found only if ``mirrored`` is given. signatures: (n, 192) uint8 from
    `poster_signature`. max_distance: largest Hamming distance (0 to 15) between the hashes of two near-duplicates.
    Groups are numbered in the order of their first samples. Another order of the samples changes only these numbers.
    """
    n = len(digests)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    if mirrored is not None:  # the second half of the arrays describes the mirror images
        hashes = np.concatenate([hashes, mirrored])
        signatures = np.concatenate([signatures, mirrored_signatures(signatures)])
    # A content is a distinct pair of hash and signature. Equal pictures share a content, so they take no extra time.
    record = np.hstack([hashes[:, None].astype(">u8").view(np.uint8), signatures])
    rows = np.ascontiguousarray(record).view(np.dtype((np.void, record.shape[1]))).ravel()
    _, first, content = np.unique(rows, return_index=True, return_inverse=True)
    _, file = np.unique(np.asarray(digests), return_inverse=True)
    # The nodes of the graph are all contents, then all distinct files. Each sample connects its contents to its file.
    groups = _Groups(len(first) + int(file.max()) + 1, signatures[first])
    groups.join(content, np.tile(file, len(content) // n) + len(first))
    _join_contents(groups, hashes[first], max_distance)

    label = groups.labels[content[:n]]
    _, first_row, number = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first_row), dtype=np.int64)
    rank[np.argsort(first_row)] = np.arange(len(first_row))
    numbers: NDArray[np.int64] = rank[number]
    return numbers


class _Groups:
    """Components of a graph. Its nodes are the pictures, then the files. `labels[i]` is the component of node i."""

    def __init__(self, nodes: int, signatures: NDArray[np.uint8]) -> None:
        self.labels: NDArray[np.int64] = np.arange(nodes)
        self.signatures = signatures  # one for each content
        luma = np.empty((len(signatures), SIGNATURE_SIDE**2), dtype=np.float32)
        for begin in range(0, len(luma), _CHECKS_AT_ONCE):
            part = signatures[begin : begin + _CHECKS_AT_ONCE].reshape(-1, SIGNATURE_SIDE**2, 3)
            luma[begin : begin + len(part)] = part.astype(np.float32) @ _LUMA
        self.light = luma.mean(1)
        # Signatures that agree differ less in mean luma. Blank ones differ by at most |_LUMA| * sqrt(3) * 2.5 = 2.9.
        self.reach = np.where(luma.std(1) < BLANK_STD * 0.99, BLANK_RMS * 1.2, MAX_LUMA_RMS) + 0.1

    def join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        if len(a) == 0:
            return
        size = int(self.labels.max()) + 1
        from scipy.sparse import coo_array  # here, because each worker process would take 0.2 s to import it
        from scipy.sparse.csgraph import connected_components

        edges = coo_array((np.ones(len(a), dtype=bool), (self.labels[a], self.labels[b])), shape=(size, size))
        _, merged = connected_components(edges, directed=False)
        self.labels = merged[self.labels].astype(np.int64)

    def join_alike(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Join node a[i] to node b[i] if their signatures agree. Mean luma is compared first, to save time."""
        near = np.abs(self.light[a] - self.light[b]) <= np.minimum(self.reach[a], self.reach[b])
        near &= self.labels[a] != self.labels[b]
        a, b = a[near], b[near]
        same = signatures_agree(self.signatures[a], self.signatures[b])
        self.join(a[same], b[same])


def _join_contents(groups: _Groups, hashes: NDArray[np.uint64], distance: int) -> None:
    unique, start, count = np.unique(hashes, return_index=True, return_counts=True)
    pending: list[_Pairs] = []
    for pairs in _near_hashes(unique, distance):
        pending.append(pairs)
        if sum(len(u) for u, _ in pending) >= _PAIRS_AT_ONCE:
            _join_hash_pairs(groups, pending, start, count)
            pending = []
    _join_hash_pairs(groups, pending, start, count)


def _join_hash_pairs(groups: _Groups, pairs: list[_Pairs], start: NDArray[np.int64], count: NDArray[np.int64]) -> None:
    """Join near-duplicate nodes of each pair of hashes. Hash h has the nodes start[h] to start[h] + count[h] - 1."""
    if not pairs:
        return
    u, v = (np.concatenate(side) for side in zip(*pairs, strict=True))
    while len(u):
        # Skip pairs of hashes whose contents are all in one group. This saves time in large groups.
        contents = groups.labels[: start[-1] + count[-1]]
        low, high = np.minimum.reduceat(contents, start), np.maximum.reduceat(contents, start)
        todo = (low[u] != low[v]) | (low[u] != high[u]) | (low[v] != high[v])
        u, v = u[todo], v[todo]
        end = max(1, int(np.searchsorted(np.cumsum(count[u] * count[v]), _PAIRS_AT_ONCE)))
        now_u, now_v, u, v = u[:end], v[:end], u[end:], v[end:]
        for pair, left in _ranges(start[now_u], start[now_u] + count[now_u]):
            other = now_v[pair]
            first = np.where(now_u[pair] == other, left + 1, start[other])
            for index, right in _ranges(first, start[other] + count[other]):
                for begin in range(0, len(right), _CHECKS_AT_ONCE):
                    part = slice(begin, begin + _CHECKS_AT_ONCE)
                    groups.join_alike(left[index[part]], right[part])


def _near_hashes(unique: NDArray[np.uint64], distance: int) -> Iterator[_Pairs]:
    """Yield index pairs of hashes that differ in at most `distance` bits. Pairs (i, i) are included. Pairs can repeat.

    Each of the four tables holds one quarter of every hash. If two hashes differ in at most r bits, they differ in at
    most r // 4 bits in one of the first r % 4 + 1 tables, or in at most r // 4 - 1 bits in another table.
    """
    everyone = np.arange(len(unique))
    yield everyone, everyone
    for table in range(_TABLES):
        radius = distance // _TABLES - (table > distance % _TABLES)
        keys = ((unique >> np.uint64(_BITS * table)) & np.uint64((1 << _BITS) - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        keys, code = keys[order], unique[order]
        bucket = np.searchsorted(keys, np.arange((1 << _BITS) + 1))
        for bits in range(radius + 1):
            for chosen in combinations(range(_BITS), bits):
                other = keys ^ sum(1 << bit for bit in chosen)
                # Each pair is found only once per table: with a later hash of the same key, or a hash of a greater key.
                low = everyone + 1 if bits == 0 else bucket[other]
                high = np.where(other >= keys, bucket[other + 1], low)
                for i, j in _ranges(low, high):
                    near = np.bitwise_count(code[i] ^ code[j]) <= distance
                    if near.any():
                        yield order[i[near]], order[j[near]]


def _ranges(low: NDArray[np.int64], high: NDArray[np.int64]) -> Iterator[_Pairs]:
    """Yield all pairs (i, j) with low[i] <= j < high[i], as arrays of about _PAIRS_AT_ONCE pairs."""
    rows = np.flatnonzero(high > low)
    size = (high - low)[rows]
    total = np.cumsum(size)
    begin = 0
    while begin < len(rows):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _PAIRS_AT_ONCE, side="right")))
        part, lengths = rows[begin:end], size[begin:end]
        offset = np.repeat(low[part] - (total[begin:end] - lengths - done), lengths)
        yield np.repeat(part, lengths), offset + np.arange(len(offset))
        begin = end
