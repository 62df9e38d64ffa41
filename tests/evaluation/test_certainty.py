"""Intervals and the value of more pairs, against new pairs of a known annotator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_lpc.evaluation.certainty import certainty, more_pairs_line
from megatron_lpc.evaluation.evidence import Evidence

CODES = 4


def drawn(pairs: int, generator: torch.Generator, product: bool) -> tuple[Evidence, Tensor]:
    """Evidence of pairs that an annotator of code 1 has labelled, and [pairs, K] probability of the labels."""
    margins = 1.5 * torch.randn(pairs, CODES, generator=generator, dtype=torch.float64)
    margins[:, 3] = margins[:, 1]  # Another code that means the same.
    as_given = torch.rand(pairs, generator=generator, dtype=torch.float64) < margins[:, 1].sigmoid()
    probability = torch.where(as_given[:, None], margins, -margins).sigmoid()
    return Evidence(logits=probability.log(), product=product), probability


@pytest.mark.parametrize("product", [False, True])
def test_predictions_change_as_with_new_pairs(product):
    generator = torch.Generator().manual_seed(1)
    of_sets = [certainty(*drawn(32, generator, product)).change for _ in range(20)]
    found = {size: sum(change[size] for change in of_sets) / len(of_sets) for size in of_sets[0]}
    assert list(found) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    _, probability = drawn(500, generator, product)
    for size in (4, 16, 32):
        fresh = torch.stack([drawn(size, generator, product)[0].weights for _ in range(400)]) @ probability.T
        wanted = float((fresh[::2] - fresh[1::2]).abs().mean())
        # As many pairs as there are resample the chance in these too, which a product of experts makes much of.
        most = 4 if product and size == 32 else 1.25
        assert wanted / 1.25 < found[size] < wanted * most, size
    if not product:  # The error of a mean falls with the root of the number of pairs.
        assert found[128] == pytest.approx(found[32] / 2, rel=0.1)


def test_codes_that_mean_the_same_are_not_uncertain():
    """Which of two equal codes has the weight is open for ever, and changes no prediction."""
    probability = torch.full((8, 2), 0.7, dtype=torch.float64)
    logits = torch.tensor([[9.0, 0], [0, 9.0]] * 4, dtype=torch.float64)
    found = certainty(Evidence(logits=logits, product=True), probability)
    assert max(found.change.values()) < 1e-12
    assert found.interval is not None
    assert float((found.interval[1] - found.interval[0]).min()) > 0.9
    assert more_pairs_line(found, 8).endswith("by 0.0 points of probability: more pairs change little.")


def test_intervals_hold_the_weights_of_many_pairs():
    generator = torch.Generator().manual_seed(2)
    truth = drawn(20_000, generator, False)[0].weights
    held = []
    for _ in range(20):
        interval = certainty(*drawn(40, generator, False)).interval
        assert interval is not None
        held.append((interval[0] < truth) & (truth < interval[1]))
    assert torch.stack(held).double().mean() == pytest.approx(0.95, abs=0.07)


def test_entropy_and_codes():
    half = torch.full((2, CODES), 0.5, dtype=torch.float64)
    sure = certainty(Evidence(logits=torch.tensor([[50.0, 0, 0, 0]] * 2, dtype=torch.float64), product=True), half)
    unsure = certainty(Evidence(logits=torch.zeros(2, CODES, dtype=torch.float64), product=True), half)
    assert (sure.entropy, sure.effective_codes) == pytest.approx((0, 1))
    assert (unsure.entropy, unsure.effective_codes) == pytest.approx((math.log(CODES), CODES))


def test_one_line_says_what_more_pairs_would_change():
    probability = torch.tensor([[0.9, 0.1]] * 8, dtype=torch.float64)
    single = certainty(Evidence(logits=probability[:1].log(), product=False), probability[:1])
    assert single.interval is None
    assert "label more" in more_pairs_line(single, 1)
    mixed = torch.tensor([[3.0, 0], [0, 3.0]] * 4, dtype=torch.float64)
    found = certainty(Evidence(logits=mixed, product=False), probability)
    assert found.change[128] > 0.02
    assert "and with 128 pairs still by" in more_pairs_line(found, 8)
    found = certainty(Evidence(logits=mixed, product=False), 0.5 + (probability - 0.5) / 5)
    enough = next(size for size, change in found.change.items() if size > 8 and change < 0.02)
    assert more_pairs_line(found, 8).endswith(f": label {enough - 8} more.")
