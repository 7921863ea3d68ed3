"""Divide samples into train, validation and test splits, stratified by all labels.

The method is iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data",
2011). Here the method places whole groups of duplicates instead of single samples. A local search then repairs the
counts that are outside their tolerances. Groups are first sorted by the BLAKE2b hash of seed and id. So the result
is the same on every machine and for every order of the rows.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError

COMMON_SUPPORT = 30  # labels with at least this number of samples must be near their target in every split
_LABEL_AIM = 0.10  # tolerance of a label's count, as a share of the target; split_samples promises 20%
_SIZE_AIM = 0.001  # tolerance of a split's size, as a share of all samples; split_samples promises 1%
_ROUNDING = 0.51  # smallest tolerance of a count, in samples: a whole number can be 0.5 away from its target
_SIZE_ROUNDING = 1.5  # smallest tolerance of a size, in samples: a smaller one can leave a split without a rare label
_BEST = 32  # number of best moves per direction that are combined into swaps
_BOOSTS = 40  # largest number of times that the weights are raised in a local minimum

#: Names of the splits, in the order of the fractions of a build.
SPLITS = ("train", "val", "test")


def parse_splits(text: str) -> tuple[float, ...]:
    """Convert ``0.8,0.1,0.1`` to (0.8, 0.1, 0.1). Raises UserError if a part is not a number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError("option-value", f"--splits takes three numbers such as 0.8,0.1,0.1, not {text!r}") from None


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise UserError unless these are three shares of 0 or more that sum to 1."""
    if len(fractions) != len(SPLITS):
        count = len(fractions)
        raise UserError("option-value", f"--splits needs three shares (train, val, test), not {count}")
    if not all(share >= 0 for share in fractions) or not abs(sum(fractions) - 1) <= 1e-6:
        shares = ",".join(f"{share:g}" for share in fractions)
        raise UserError("option-value", f"--splits needs shares of 0 or more that sum to 1, not {shares}")


def split_samples(
    ids: Sequence[str],
    labels: Sequence[Sequence[int]],
    groups: NDArray[np.int64],
    fractions: Mapping[str, float],
    seed: int,
) -> NDArray[np.int8]:
    """Return the split of every sample, (n,) int8. A split is given by its index in ``fractions``.

    The n ``ids`` are all different. ``labels`` has the label numbers of each sample, from 0. ``groups`` has the number
    of each sample's group of duplicates, (n,). No group is divided. ``fractions`` has the share of each split. A split
    with the share 0 stays empty. The result depends only on the seed and the set of samples.

    If the groups allow it, the count of a label with 30 or more samples is within 20% of its target in every split.
    Sizes of splits are within 1% of n, or within 2 samples. A label with 3 to 29 samples has a sample in every split.
    In sets of up to 200 samples, a split can lack one such label. Labels with 1 or 2 samples go to the largest split.
    """
    shares = np.array(list(fractions.values()), dtype=np.float64) / sum(fractions.values())
    if len(ids) == 0:
        return np.zeros(0, dtype=np.int8)
    group = _ordered_groups(ids, np.asarray(groups), seed)
    counts = _group_counts(labels, group)
    active = np.flatnonzero(shares > 0)
    targets = _targets(counts, shares[active])
    placed = _repair(counts, targets, _stratify(counts, targets))
    return active[placed][group].astype(np.int8)


def _ordered_groups(ids: Sequence[str], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Number the groups from 0 in an order that depends only on the seed and the ids. Return (n,) group numbers."""
    prefix = f"{seed}:".encode()
    keys = [hashlib.blake2b(prefix + str(i).encode(), digest_size=16).digest() for i in ids]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    _, first, number = np.unique(groups[order], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    result = np.empty(len(ids), dtype=np.int64)
    result[order] = rank[number]
    return result


def _group_counts(labels: Sequence[Sequence[int]], group: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of samples for each pair of group and used label. The last column has the group sizes."""
    sets = [sorted(set(row)) for row in labels]
    lengths = np.array([len(row) for row in sets], dtype=np.int64)
    flat = np.array([label for row in sets for label in row], dtype=np.int64)
    used, column = np.unique(flat, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, len(used) + 1), dtype=np.int32)
    np.add.at(counts, (np.repeat(group, lengths), column), 1)
    counts[:, -1] = np.bincount(group)
    return counts


def _targets(counts: NDArray[np.int32], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (splits, columns) target numbers of samples. Each column sums to the number of samples of its label.

    A label with under 30 samples has a target of at least 1 in every split. If it has fewer samples than splits, or
    under 3, its whole target is in the largest split.
    """
    support = counts.sum(0).astype(np.float64)
    targets = shares[:, None] * support
    largest = int(np.argmax(shares))
    few = support < COMMON_SUPPORT
    few[-1] = False
    spread = few & (support >= max(3, len(shares)))
    targets[:, spread] = np.maximum(targets[:, spread], 1)
    targets[:, few & ~spread] = 0
    rest = np.delete(targets, largest, axis=0).sum(0)
    targets[largest] = support - rest
    return targets


def _stratify(counts: NDArray[np.int32], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each group's split. Place labels with few unplaced samples first, and large groups before small ones."""
    placed = np.full(len(counts), -1, dtype=np.int64)
    size = counts[:, -1]
    order = np.argsort(-size, kind="stable")
    occupied = [np.flatnonzero(row).tolist() for row in counts]
    rows = [counts[g, columns].tolist() for g, columns in enumerate(occupied)]
    need = targets.tolist()
    scale = np.maximum(targets, 1e-9).tolist()
    splits = range(len(targets))
    last = counts.shape[1] - 1
    while True:
        open_groups = order[placed[order] < 0]
        if len(open_groups) == 0:
            return placed
        left = counts[open_groups].sum(0)[:-1]
        waiting = np.flatnonzero(left)
        column = int(waiting[np.argmin(left[waiting])]) if len(waiting) else last
        members = open_groups[counts[open_groups, column] > 0]
        for g, amount in zip(members.tolist(), counts[members, column].tolist(), strict=True):
            # Among the splits that need the whole group, take the least filled split, so that large groups spread out.
            # If no split needs the whole group, take the split that lacks the most samples, to keep the excess small.
            room = [s for s in splits if need[s][column] >= amount]
            if room:
                best = max(room, key=lambda s: (need[s][column] / scale[s][column], need[s][last] / scale[s][last]))
            else:
                best = max(splits, key=lambda s: (need[s][column], need[s][last]))
            placed[g] = best
            wants = need[best]
            for c, value in zip(occupied[g], rows[g], strict=True):
                wants[c] -= value


def _repair(counts: NDArray[np.int32], targets: NDArray[np.float64], placed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move and swap groups until all counts are within their tolerances. Return each group's best split.

    The cost is a weighted sum of the squared distances from the targets. Each step is the move or swap that lowers the
    cost most. In a local minimum, counts outside their tolerance get a larger weight. Groups with equal counts form a
    kind. The search compares kinds instead of groups, which is faster.
    """
    splits, columns = targets.shape
    support = counts.sum(0)
    aim = np.maximum(_LABEL_AIM * targets, _ROUNDING)
    aim[:, -1] = max(_SIZE_AIM * support[-1], _SIZE_ROUNDING)
    have = np.stack([counts[placed == s].sum(0) for s in range(splits)])
    excess = have - targets
    if splits == 1 or bool((np.abs(excess) <= aim).all()):
        return placed
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    kind = kind.ravel()
    stock = np.zeros((len(kinds), splits), dtype=np.int64)
    np.add.at(stock, (kind, placed), 1)
    original = stock.copy()
    x = kinds.astype(np.float64)
    # Labels that are too rare for several splits have a target in one split. Their samples can always be placed there.
    must = np.broadcast_to((support >= COMMON_SUPPORT) | ((targets > 0).sum(0) == 1), aim.shape).copy()
    must[:, -1] = True

    def badness(excess: NDArray[np.float64]) -> tuple[float, float]:
        over = np.maximum(np.abs(excess) / aim - 1, 0)
        return float(over[must].sum()), float(over[~must].sum())

    weight = 1 / aim**2
    best, best_stock, boosts = badness(excess), stock.copy(), 0
    for _ in range(int(np.clip(4e8 // (len(x) * columns * splits**2), 30, 4000))):
        step = _best_step(x, stock, excess, weight)
        if step is None:
            boosts += 1
            if boosts > _BOOSTS:
                break
            missed = np.abs(excess) > aim
            weight = np.where(missed, weight * np.where(must, 2.0, 1.25), weight)
            continue
        source, target, there, back = step
        for row, s, t in [(there, source, target)] + ([(back, target, source)] if back is not None else []):
            stock[row, s] -= 1
            stock[row, t] += 1
            excess[s] -= x[row]
            excess[t] += x[row]
        now = badness(excess)
        if now < best:
            best, best_stock = now, stock.copy()
            if best == (0.0, 0.0):
                break
    return _place_again(placed, kind, original, best_stock)


def _best_step(
    x: NDArray[np.float64], stock: NDArray[np.int64], excess: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[int, int, int, int | None] | None:
    """Find the best move of one group to another split, or the best swap of two groups. None if no step helps.

    Groups with equal counts form a kind. Return the source split, the target split, the kind to move, and the kind to
    move back (None for a move). ``x``, (kinds, columns), has the counts of one group of each kind. ``stock``,
    (kinds, splits), has the numbers of groups. ``excess`` and ``weight`` are (splits, columns).
    """
    splits = len(excess)
    square = x**2
    change = np.full((splits, splits, len(x)), np.inf)
    for s, t in itertools.permutations(range(splits), 2):
        slope = 2 * (weight[t] * excess[t] - weight[s] * excess[s])
        change[s, t] = np.where(stock[:, s] > 0, x @ slope + square @ (weight[s] + weight[t]), np.inf)
    s, t, row = (int(i) for i in np.unravel_index(np.argmin(change), change.shape))
    lowest = float(change[s, t, row])
    found: tuple[int, int, int, int | None] = (s, t, row, None)
    for s, t in itertools.combinations(range(splits), 2):
        there = np.argsort(change[s, t], kind="stable")[:_BEST]
        back = np.argsort(change[t, s], kind="stable")[:_BEST]
        # Both moves change the same two splits, so the cost of a swap has a cross term.
        overlap = 2 * (x[there] * (weight[s] + weight[t])) @ x[back].T
        both = change[s, t][there][:, None] + change[t, s][back][None, :] - overlap
        i, j = (int(k) for k in np.unravel_index(np.argmin(both), both.shape))
        if both[i, j] < lowest:
            lowest, found = float(both[i, j]), (s, t, int(there[i]), int(back[j]))
    return found if lowest < -1e-9 else None


def _place_again(
    placed: NDArray[np.int64], kind: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return new splits. As few groups as possible move. ``before``, ``after``: (kinds, splits) numbers of groups."""
    result = placed.copy()
    for row in np.flatnonzero((before != after).any(1)):
        surplus = before[row] - after[row]
        members = np.flatnonzero(kind == row)
        moving = [g for s in np.flatnonzero(surplus > 0) for g in members[placed[members] == s][: surplus[s]]]
        result[moving] = np.repeat(np.arange(len(surplus)), np.maximum(-surplus, 0))
    return result
