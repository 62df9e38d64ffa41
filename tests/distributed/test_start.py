"""Before the first step the policy is its reference: to the last bit, in every layout, so that the dpo loss is ln 2."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from layout_cases import LAYOUTS, START_CASES

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("case", START_CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_policy_is_its_reference(run_layout: Callable[[str], list[dict[str, dict]]], layout: str, case: str) -> None:
    ranks = [rank[case] for rank in run_layout(layout)]
    seen = {sample: logps for rank in ranks for sample, logps in rank["logps"].items()}
    assert seen.keys() == set(range(8))
    for sample, (policy, reference) in seen.items():
        assert policy.abs().min() > 1, "log-probs of several tokens are there"
        assert torch.equal(policy, reference), f"sample {sample}: {policy.tolist()} against {reference.tolist()}"
    sums, latent = ranks[0]["metrics"], START_CASES[case][0]
    divergence = float(sums["lpc/kl"] / sums["pairs"]) if latent.latent_mode == "lpc" else 0.0
    assert (divergence > 1e-3) == (latent.latent_mode == "lpc"), "the latent head is at work, though its codes are zero"
    assert abs(float(sums["loss"] / sums["pairs"]) - latent.kl_weight * divergence - math.log(2)) < 1e-6
