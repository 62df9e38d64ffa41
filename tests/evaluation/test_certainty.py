"""Intervals and the value of more pairs, against new pairs of a known annotator."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lpc.evaluation.certainty import certainty, more_pairs_line
from megatron_lpc.evaluation.evidence import Evidence

CODES = 4


def drawn(pairs: int, generator: torch.Generator, product: bool) -> Evidence:
    """Logits of pairs of an annotator who prefers code 1 and is not always sure of it."""
    logits = torch.randn(pairs, CODES, generator=generator, dtype=torch.float64)
    logits[:, 1] += 0.5
    return Evidence(logits=logits if product else 2 * logits, product=product)


@pytest.mark.parametrize("product", [False, True])
def test_moved_weight_is_that_of_new_pairs(product):
    generator = torch.Generator().manual_seed(1)
    of_sets = [certainty(drawn(32, generator, product)).moved for _ in range(20)]
    found = {size: sum(moved[size] for moved in of_sets) / len(of_sets) for size in of_sets[0]}
    assert list(found) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    for size in (4, 16, 32):
        fresh = torch.stack([drawn(size, generator, product).weights for _ in range(600)])
        moved = (fresh[::2] - fresh[1::2]).abs().sum(-1).mean() / 2
        # A product of as many pairs as there are resamples its own chance order of the codes too: it moves more.
        most = 2.2 if product and size == 32 else 1.25
        assert moved / 1.25 < found[size] < moved * most, size
    if not product:  # A mean's error falls with the root of the number of pairs.
        assert found[128] == pytest.approx(found[32] / 2, rel=0.1)


def test_intervals_hold_the_weights_of_many_pairs():
    generator = torch.Generator().manual_seed(2)
    truth = drawn(20_000, generator, False).weights
    held = []
    for _ in range(20):
        interval = certainty(drawn(40, generator, False)).interval
        assert interval is not None
        held.append((interval[0] < truth) & (truth < interval[1]))
    assert torch.stack(held).double().mean() == pytest.approx(0.95, abs=0.05)


def test_entropy_and_codes():
    sure = certainty(Evidence(logits=torch.tensor([[50.0, 0, 0, 0]] * 2, dtype=torch.float64), product=True))
    unsure = certainty(Evidence(logits=torch.zeros(2, CODES, dtype=torch.float64), product=True))
    assert (sure.entropy, sure.effective_codes) == pytest.approx((0, 1))
    assert (unsure.entropy, unsure.effective_codes) == pytest.approx((math.log(CODES), CODES))


def test_one_line_says_what_more_pairs_would_change():
    alike = certainty(Evidence(logits=torch.tensor([[3.0, 0]] * 8, dtype=torch.float64), product=False))
    assert more_pairs_line(alike, 8).endswith("would move 0% of the weight: more pairs change little.")
    single = certainty(Evidence(logits=torch.tensor([[3.0, 0]], dtype=torch.float64), product=False))
    assert single.interval is None
    assert "label more" in more_pairs_line(single, 1)
    mixed = torch.tensor([[3.0, 0], [0, 3.0]] * 4, dtype=torch.float64)
    found = certainty(Evidence(logits=mixed, product=False))
    enough = next(size for size, moved in found.moved.items() if size > 8 and (moved < 0.05 or size == 128))
    assert more_pairs_line(found, 8).endswith(f": label {enough - 8} more.")
