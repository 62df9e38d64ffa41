"""Mutual information of codes and groups."""

import math

import pytest
import torch

from megatron_lpc.evaluation.information import mutual_information


def test_codes_that_name_the_group_hold_all_its_information():
    found = mutual_information(torch.tensor([5, 5, 2, 2]), ["a", "a", "b", "b"])
    assert found.bits == pytest.approx(1.0)
    assert found.maximum == pytest.approx(1.0)


def test_several_codes_for_one_group_lose_nothing():
    assert mutual_information(torch.tensor([0, 1, 2, 3]), ["a", "a", "b", "b"]).bits == pytest.approx(1.0)


def test_independent_codes_hold_no_information():
    assert mutual_information(torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"]).bits == 0.0


def test_a_single_code_holds_no_information():
    found = mutual_information(torch.tensor([7, 7, 7]), ["a", "b", "c"])
    assert found.bits == pytest.approx(0.0, abs=1e-12)
    assert found.bias == 0.0
    assert found.maximum == pytest.approx(math.log2(3))


def test_against_the_definition():
    # p(a,0) = 3/8, p(a,1) = 1/8, p(b,1) = 4/8
    codes, groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), ["a"] * 4 + ["b"] * 4
    expected = 3 / 8 * math.log2((3 / 8) / (1 / 2 * 3 / 8)) + 1 / 8 * math.log2((1 / 8) / (1 / 2 * 5 / 8))
    expected += 4 / 8 * math.log2((4 / 8) / (1 / 2 * 5 / 8))
    assert mutual_information(codes, groups).bits == pytest.approx(expected)


def test_bias_is_the_mean_information_of_independent_codes():
    generator = torch.Generator().manual_seed(0)
    groups = ["a", "b", "c"] * 100
    found = [mutual_information(torch.randint(4, (300,), generator=generator), groups) for _ in range(400)]
    assert sum(one.bits for one in found) / 400 == pytest.approx(found[0].bias, rel=0.1)


@pytest.mark.parametrize(
    ("codes", "groups"), [(torch.tensor([], dtype=torch.int64), []), (torch.tensor([1]), ["a", "b"])]
)
def test_pairs_and_groups_must_fit(codes, groups):
    with pytest.raises(ValueError, match="as many groups"):
        mutual_information(codes, groups)
