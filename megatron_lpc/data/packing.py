"""Which pairs share a row: bins of equal cost under a token budget."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def pack(tokens: Sequence[int], costs: Sequence[float], budget: int, multiple: int = 1) -> list[list[int]]:
    """Put items into as few bins as go, a multiple of `multiple`, none over `budget` tokens and all of nearly the same cost.

    Longest processing time first (Graham, 1969): the dearest item left goes to the cheapest bin that has room for it, which keeps the
    dearest bin within 4/3 of the best possible where the budget does not bind. A function of its arguments alone.

    Args:
        tokens: of each item, at most `budget`.
        costs: of each item, in any unit.
        multiple: a divisor of the number of items, for then no bin is empty.

    Returns:
        Ascending places of the items of each bin, the bin with the smallest place first.

    Raises:
        ValueError: an item exceeds the budget, or `multiple` does not divide the number of items.
    """
    count = len(tokens)
    if count % multiple:
        raise ValueError(f"{count} items cannot fill a multiple of {multiple} bins")
    if (longest := max(tokens)) > budget:
        raise ValueError(f"item {tokens.index(longest)} has {longest} tokens, more than the budget of {budget}")
    fewest = -(-sum(tokens) // budget)
    for bins in range(-(-fewest // multiple) * multiple, count, multiple):
        if filled := _fill(tokens, costs, budget, bins):
            return filled
    return [[item] for item in range(count)]


def _fill(tokens: Sequence[int], costs: Sequence[float], budget: int, bins: int) -> list[list[int]] | None:
    """None where an item finds no room."""
    open_bins: list[tuple[float, int, int, list[int]]] = [(0.0, number, budget, []) for number in range(bins)]
    for item in sorted(range(len(tokens)), key=lambda item: (-costs[item], item)):
        passed = []
        while open_bins and open_bins[0][2] < tokens[item]:
            passed.append(heapq.heappop(open_bins))
        if not open_bins:
            return None
        cost, number, room, items = open_bins[0]
        heapq.heapreplace(open_bins, (cost + costs[item], number, room - tokens[item], [*items, item]))
        for one in passed:
            heapq.heappush(open_bins, one)
    return sorted(sorted(items) for _, _, _, items in open_bins)
