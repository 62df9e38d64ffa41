"""Every parallel layout, and every packing layout, computes what one process does with a sequence per response.

Compared are losses, log-probs, KL, noise and every parameter's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from layout_cases import CASES, FROZEN_CASES, LAYOUTS, PACKING_CASES, START_CASES

pytestmark = pytest.mark.distributed
Result = dict[str, dict]


@pytest.fixture(scope="module")
def single(run_layout: Callable[[str], list[Result]]) -> Result:
    return _assemble_cases(run_layout("single"))


# Recomputation is only core's, and takes minutes.
SLOW = ("recompute_full", "tp2_recompute_selective")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS if name != "single"],
)
def layout(request: pytest.FixtureRequest, run_layout: Callable[[str], list[Result]]) -> Result:
    return _assemble_cases(run_layout(request.param))


def _assemble_cases(ranks: list[Result]) -> Result:
    """What the processes of a parallel layout computed, case by case, their pieces put together."""
    return {case: _assemble([rank[case] for rank in ranks]) for case in (*CASES, *PACKING_CASES, *FROZEN_CASES)}


def _assemble(ranks: list[dict]) -> dict:
    """One result from those of all ranks. Replicas of a piece must agree."""
    whole: dict = {"metrics": ranks[0]["metrics"], "logps": {}, "z": {}, "grads": {}}
    for rank in ranks:
        for name, value in rank["metrics"].items():
            torch.testing.assert_close(
                value, whole["metrics"][name], rtol=0, atol=0, msg=f"{name} differs between ranks"
            )
        for kind in ("logps", "z"):
            for sample, value in rank[kind].items():
                assert torch.equal(whole[kind].setdefault(sample, value), value), (
                    f"{kind} of sample {sample} differs between ranks"
                )
        for (name, offset), (shape, piece) in rank["grads"].items():
            full = whole["grads"].setdefault(name, torch.full(shape, torch.nan))
            window = full[tuple(slice(o, o + s) for o, s in zip(offset, piece.shape, strict=True))]
            if not window.isnan().any():
                torch.testing.assert_close(piece, window, rtol=1e-5, atol=1e-7, msg=f"replicas of {name} differ")
            window.copy_(piece)
    for name, gradient in whole["grads"].items():
        assert not gradient.isnan().any(), f"no rank has all of {name}"
    return whole


@pytest.mark.parametrize("case", CASES)
def test_equals_one_process(single: Result, layout: Result, case: str) -> None:
    _assert_equal(single[case], layout[case], case)


@pytest.mark.parametrize("case", PACKING_CASES)
def test_shared_and_packed_sequences_equal_separate_ones(single: Result, case: str) -> None:
    _assert_equal(single[PACKING_CASES[case][0]], single[case], case)


@pytest.mark.parametrize("case", PACKING_CASES)
def test_shared_and_packed_sequences_in_every_layout(single: Result, layout: Result, case: str) -> None:
    _assert_equal(single[PACKING_CASES[case][0]], layout[case], case)


@pytest.mark.parametrize("case", FROZEN_CASES)
def test_a_frozen_backbone_in_one_process(single: Result, case: str) -> None:
    _assert_equal(_of_the_head(single[FROZEN_CASES[case][0]]), single[case], case)


@pytest.mark.parametrize("case", FROZEN_CASES)
def test_a_frozen_backbone_in_every_layout(single: Result, layout: Result, case: str) -> None:
    _assert_equal(_of_the_head(single[FROZEN_CASES[case][0]]), layout[case], case)


def _of_the_head(result: dict) -> dict:
    """The same result with the gradients of the LPC head only."""
    grads = {name: gradient for name, gradient in result["grads"].items() if name.startswith("latent_head.")}
    assert grads
    return result | {"grads": grads}


def _assert_equal(one: dict, many: dict, case: str) -> None:
    assert many["metrics"].keys() == one["metrics"].keys()
    for name, value in one["metrics"].items():
        if name == "work" and (case in PACKING_CASES or "pack" in case):
            continue  # Less of it, which is the point.
        torch.testing.assert_close(
            many["metrics"][name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert many["logps"].keys() == one["logps"].keys() == set(range(8))
    for sample, value in one["logps"].items():
        torch.testing.assert_close(many["logps"][sample], value, rtol=1e-6, atol=1e-5)
    assert many["z"].keys() == one["z"].keys() == (set() if "-none-" in case else set(range(8)))
    for sample, value in one["z"].items():
        torch.testing.assert_close(many["z"][sample], value, rtol=1e-5, atol=1e-5)
    assert many["grads"].keys() == one["grads"].keys()
    for name, gradient in one["grads"].items():
        # Cancellation within a matrix leaves small entries with the rounding of the large ones: the largest sets the
        # scale.
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            many["grads"][name], gradient, rtol=0, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_algorithms_of_the_head_agree(layout: Result, model: str) -> None:
    """Gradients made in the forward pass, straight into megatron-core's buffer, are those of recomputed logits."""
    pairwise, recomputed = layout[f"dpo-lpc-{model}"], layout[f"dpo_recomputed-lpc-{model}"]
    for sample, value in recomputed["logps"].items():
        torch.testing.assert_close(pairwise["logps"][sample], value, rtol=1e-6, atol=1e-5)
    for name, gradient in recomputed["grads"].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            pairwise["grads"][name], gradient, rtol=0, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_there(single: Result, case: str) -> None:
    """The comparison above would pass on zeros."""
    for name, gradient in single[case]["grads"].items():
        assert gradient.abs().max() > 1e-7, f"{name} has no gradient"


@pytest.mark.parametrize("case", START_CASES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_policy_is_its_reference(run_layout: Callable[[str], list[Result]], name: str, case: str) -> None:
    """Before the first step, to the last bit, in every parallel layout, so that the dpo loss is ln 2."""
    ranks = [rank[case] for rank in run_layout(name)]
    seen = {sample: logps for rank in ranks for sample, logps in rank["logps"].items()}
    assert seen.keys() == set(range(8))
    for sample, (policy, reference) in seen.items():
        assert policy.abs().min() > 1, "log-probs of several tokens are there"
        assert torch.equal(policy, reference), f"sample {sample}: {policy.tolist()} against {reference.tolist()}"
    sums, latent = ranks[0]["metrics"], START_CASES[case][0]
    divergence = float(sums["lpc/kl"] / sums["pairs"]) if latent.latent_mode == "lpc" else 0.0
    assert (divergence > 1e-3) == (latent.latent_mode == "lpc"), "the latent head is at work, though its codes are zero"
    assert abs(float(sums["loss"] / sums["pairs"]) - latent.kl_weight * divergence - math.log(2)) < 1e-6
