"""Which items share a bin: bins of equal cost under a token budget."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def pack(tokens: Sequence[int], costs: Sequence[float], budget: int, multiple: int = 1) -> list[list[int]]:
    """Put items into as few bins as possible, each within `budget` tokens and all of nearly the same cost.

    Longest processing time first (Graham, 1969): the costliest item left goes to the cheapest bin that has room for it,
    which keeps the costliest bin within 4/3 of the best possible where the budget does not bind. The result depends on
    the arguments only.

    Args:
        tokens: of each item, at most `budget`.
        costs: of each item, in any unit.
        multiple: the number of bins is a multiple of it; a divisor of the number of items, for then no bin is empty.

    Returns:
        The items of each bin in ascending order, the bin with the smallest item first.

    Raises:
        ValueError: an item exceeds the budget, or `multiple` does not divide the number of items.
    """
    num_items = len(tokens)
    if num_items % multiple:
        raise ValueError(f"{num_items} items cannot fill a multiple of {multiple} bins")
    longest = max(tokens)
    if longest > budget:
        raise ValueError(f"item {tokens.index(longest)} has {longest} tokens, more than the budget of {budget}")
    fewest_bins = -(-sum(tokens) // budget)
    first_try = -(-fewest_bins // multiple) * multiple
    for num_bins in range(first_try, num_items, multiple):
        bins = _fill(tokens, costs, budget, num_bins)
        if bins is not None:
            return bins
    return [[item] for item in range(num_items)]


def _fill(tokens: Sequence[int], costs: Sequence[float], budget: int, num_bins: int) -> list[list[int]] | None:
    """The items in so many bins; None where one finds no room."""
    # A heap of (cost, number of the bin, tokens left, items), the cheapest bin first.
    heap: list[tuple[float, int, int, list[int]]] = [(0.0, number, budget, []) for number in range(num_bins)]
    costliest_first = sorted(range(len(tokens)), key=lambda item: (-costs[item], item))
    for item in costliest_first:
        too_full = []
        while heap and heap[0][2] < tokens[item]:
            too_full.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, number, room, items = heap[0]
        heapq.heapreplace(heap, (cost + costs[item], number, room - tokens[item], [*items, item]))
        for full_bin in too_full:
            heapq.heappush(heap, full_bin)
    return sorted(sorted(items) for _, _, _, items in heap)
