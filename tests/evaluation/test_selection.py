"""Expected information of labels, against sums over all codes and outcomes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from megatron_lpc.evaluation.selection import expected_information, select_pairs

PAIRS, CODES = 6, 5


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


WEIGHTS = normal(CODES).softmax(0)
PROBABILITY = (2 * normal(PAIRS, CODES)).sigmoid()


def information(pairs: list[int]) -> float:
    """I(labels; code) = sum_k sum_y w_k p(y|k) log(p(y|k) / p(y)), by its definition."""
    total = 0.0
    for labels in itertools.product((True, False), repeat=len(pairs)):
        given = [
            math.prod(float(p if label else 1 - p) for label, p in zip(labels, PROBABILITY[pairs, code], strict=True))
            for code in range(CODES)
        ]
        marginal = sum(float(w) * p for w, p in zip(WEIGHTS, given, strict=True))
        total += sum(float(w) * p * math.log(p / marginal) for w, p in zip(WEIGHTS, given, strict=True))
    return total


def test_information_of_one_label():
    found = expected_information(WEIGHTS, PROBABILITY)
    assert found.tolist() == pytest.approx([information([pair]) for pair in range(PAIRS)], abs=1e-12)


def test_each_pair_adds_most_to_those_before_it():
    chosen: list[int] = []
    for one in select_pairs(WEIGHTS, PROBABILITY, 4):
        so_far = information(chosen) if chosen else 0.0
        gains = {pair: information([*chosen, pair]) - so_far for pair in range(PAIRS) if pair not in chosen}
        assert one.gain == pytest.approx(max(gains.values()), abs=1e-12)
        assert one.example_index == max(gains, key=lambda pair: gains[pair])
        assert one.information == pytest.approx(information([one.example_index]), abs=1e-12)
        chosen.append(one.example_index)


def test_what_is_known_is_not_asked_again():
    """Pairs 0 and 1 tell the same half of the codes apart, pair 2 another half, less surely."""
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    probability = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0.9, 0.1, 0.9, 0.1]], dtype=torch.float64)
    chosen = select_pairs(weights, probability, 10)
    assert [one.example_index for one in chosen] == [0, 2, 1]
    assert chosen[0].gain == pytest.approx(math.log(2))
    assert chosen[2].information == pytest.approx(math.log(2))
    assert chosen[2].gain == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [0, 11])
def test_how_many(count):
    with pytest.raises(ValueError, match="must be 1 to 10"):
        select_pairs(WEIGHTS, PROBABILITY, count)
