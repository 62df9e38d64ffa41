"""Products of experts against their definition, in float64."""

import pytest
import torch

from megatron_lpc.losses.experts import leave_one_out, product_of_experts


def draw(pairs, codes):
    return torch.randn(pairs, codes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_product_is_that_of_the_probabilities():
    logits = draw(5, 4)
    product = logits.softmax(-1).prod(0)
    torch.testing.assert_close(product_of_experts(logits).softmax(-1), product / product.sum())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_each_pair_has_the_product_of_the_others(size):
    logits = draw(12, 5).requires_grad_()
    pooled = leave_one_out(logits, size)
    for pair in range(12):
        first = pair // size * size
        others = [other for other in range(first, first + size) if other != pair]
        torch.testing.assert_close(pooled[pair], product_of_experts(logits[others]))
        (gradient,) = torch.autograd.grad(pooled[pair].sum(), logits, retain_graph=True)
        assert gradient[:, 0].nonzero().flatten().tolist() == others
    assert torch.autograd.gradcheck(lambda x: leave_one_out(x, size), logits)


def test_pairs_that_are_no_whole_episodes_are_refused():
    with pytest.raises(ValueError, match="5 pairs are not whole episodes of 2"):
        leave_one_out(draw(5, 3), 2)
