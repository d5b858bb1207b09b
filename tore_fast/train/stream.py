"""Which items of which data sets make batch number `index`: a function of (seed, index) alone, so that runs resume
exactly.

In: sizes, weights, a seed; out: (epoch, item) places. Tasks on data sets (tcformer.py, mesh_labels.py) read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BLOCK = 1000  # weights are kept exactly over every so many items


@lru_cache(maxsize=8)
def shuffled(count: int, *key: int) -> np.ndarray:  # [count]
    """The order of one epoch."""
    order = np.random.default_rng(key).permutation(count)
    order.setflags(write=False)
    return order


def items_of_batch(index: int, batch_size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, item) pairs of batch `index` of an endless stream of shuffled epochs over `count` items."""
    places = (divmod(n, count) for n in range(index * batch_size, (index + 1) * batch_size))
    return [(epoch, int(shuffled(count, seed, epoch)[place])) for epoch, place in places]


class Mixture:
    """An endless stream over several data sets.

    Args:
        sizes: items of each set.
        weights: share of each set in every BLOCK items, each set running through its own shuffled epochs; None: all
            items of all sets form one epoch (what the composite TSV sets of METRO and FastMETRO do).
        seed: of the orders.

    Raises:
        ValueError: an empty set, weights that are not positive, or too many sets to weigh.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int = 0):
        if not sizes or min(sizes) < 1:
            raise ValueError(f"Mixture: every data set needs items, got sizes {list(sizes)}")
        self.sizes, self.seed = list(sizes), seed
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.pattern = None
        if weights is not None:
            self._weigh(np.asarray(weights, np.float64))

    def _weigh(self, weights: np.ndarray) -> None:
        if len(weights) != len(self.sizes) or not (weights > 0).all() or not np.isfinite(weights).all():
            raise ValueError(
                f"Mixture: {len(self.sizes)} data sets need as many positive weights, got {weights.tolist()}"
            )
        exact = weights / weights.sum() * BLOCK
        counts = np.maximum(np.floor(exact).astype(int), 1)
        for i in np.argsort(counts - exact, kind="stable")[: max(0, BLOCK - counts.sum())]:
            counts[i] += 1
        counts[counts.argmax()] -= counts.sum() - BLOCK  # where tiny weights were lifted to one item
        if counts.min() < 1:
            raise ValueError(f"Mixture: at most {BLOCK} data sets can be weighed, got {len(self.sizes)}")
        pattern = np.repeat(np.arange(len(counts)), counts)
        self.pattern = pattern[shuffled(BLOCK, self.seed, 0x5E7)]
        self.counts = counts
        self.rank = np.zeros(BLOCK, int)  # how many of the same set come before, within the block
        for i in range(len(counts)):
            self.rank[self.pattern == i] = np.arange(counts[i])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, n: int) -> tuple[int, int, int]:
        """(set, item, epoch) of the n-th item of the stream."""
        if self.pattern is None:
            epoch, place = divmod(n, len(self))
            flat = int(shuffled(len(self), self.seed, epoch)[place])
            source = int(np.searchsorted(self.starts, flat, side="right")) - 1
            return source, flat - int(self.starts[source]), epoch
        block, place = divmod(n, BLOCK)
        source = int(self.pattern[place])
        epoch, place = divmod(block * int(self.counts[source]) + int(self.rank[place]), self.sizes[source])
        return source, int(shuffled(self.sizes[source], self.seed, epoch, source + 1)[place]), epoch
