"""Two models agree by a bound that scales with their logits and with their dtypes."""

from __future__ import annotations

import pytest
import torch

from megatron_lpc.convert.comparison import Comparison, Difference

EQUAL = {"model.norm.weight": Difference(0.0, 1.0)}
MOVED = {"model.norm.weight": Difference(1e-6, 1.0)}


def test_a_difference_is_relative_to_the_largest_value() -> None:
    found = Difference.of(torch.tensor([[1.0, -50.0]]), torch.tensor([[1.5, -50.0]]))
    assert (found.absolute, found.scale, found.relative) == (0.5, 50.0, 0.01)
    assert Difference.of(torch.zeros(2), torch.zeros(2)).relative == 0


def test_logits_of_a_published_model() -> None:
    """SmolLM2-135M-Instruct: 1.7e-5 is more than 1e-5, and yet a few units in the last place of its logits."""
    found = Comparison(tensors=MOVED, logits=[(1, Difference(1.72e-5, 27.4))])
    assert found.agrees()
    assert "no relative difference is above 1e-05" in found.verdict()
    assert not found.agrees(1e-7)
    assert "logits of 1 tokens by 1.72e-05 (relative 6.28e-07)" in found.verdict(1e-7)


def test_the_bound_scales_with_the_logits() -> None:
    small = Comparison(tensors=MOVED, logits=[(4, Difference(1e-4, 0.5))])
    large = Comparison(tensors=MOVED, logits=[(4, Difference(1e-4, 500.0))])
    assert not small.agrees()
    assert large.agrees()


@pytest.mark.parametrize(("dtype", "explained"), [(torch.bfloat16, 8e-3), (torch.float16, 9e-4)])
def test_the_bound_scales_with_the_dtype(dtype: torch.dtype, explained: float) -> None:
    difference = Difference(explained, 1.0)
    both = frozenset({torch.float32, dtype})
    assert Comparison(tensors={"a": difference}, logits=[(1, difference)], dtypes=both).agrees()
    assert not Comparison(tensors={"a": difference}, logits=[(1, difference)], dtypes=frozenset()).agrees()
    assert not Comparison(tensors={"a": Difference(0.2, 1.0)}, dtypes=both).agrees()


def test_equal_tensors_and_options_never_fail() -> None:
    found = Comparison(tensors=EQUAL, logits=[(1, Difference(3.0, 1.0))])
    assert found.agrees()
    assert found.agrees(1e-12)
    assert "all 1 tensors are equal to the bit" in found.verdict()
    assert "rounding does not explain the logits: logits of 1 tokens by 3 (relative 3)" in found.verdict()
    assert not Comparison(tensors=EQUAL, options=["--norm-epsilon"]).agrees()
    assert not Comparison(tensors=EQUAL, one_sided=["lm_head.weight"]).agrees()


def test_nan_is_a_disagreement() -> None:
    nan = float("nan")
    assert not Comparison(tensors=MOVED, logits=[(1, Difference(nan, nan))]).agrees(100.0)
