"""Sums over pairs: additive, in fp64, and turned into the right numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_lpc.losses import Rewards, finish_metrics, pair_metrics, sum_metrics


def random_pairs(pairs: int, codes: int = 4) -> tuple[Tensor, Rewards, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    loss = draw(pairs) + 1
    rewards = Rewards(chosen=draw(pairs), rejected=draw(pairs))
    return loss, rewards, draw(2 * pairs).requires_grad_(), draw(pairs, codes), draw(pairs, codes)


def part(metrics_input: tuple[Tensor, Rewards, Tensor, Tensor, Tensor], pairs: slice) -> dict[str, Tensor]:
    loss, rewards, logps, posterior, prior = metrics_input
    some = Rewards(chosen=rewards.chosen[pairs], rejected=rewards.rejected[pairs])
    return pair_metrics(loss[pairs], some, logps.view(2, -1)[:, pairs].reshape(-1), posterior[pairs], prior[pairs])


def test_parts_of_different_size_add_up_to_the_whole() -> None:
    everything = random_pairs(7)
    whole = part(everything, slice(None))
    added = sum_metrics([part(everything, slice(0, 2)), part(everything, slice(2, 3)), part(everything, slice(3, 7))])
    torch.testing.assert_close(added, whole)
    assert finish_metrics(added) == pytest.approx(finish_metrics(whole))
    assert all(value.dtype is torch.float64 and not value.requires_grad for value in whole.values())


def test_means() -> None:
    everything = random_pairs(6)
    loss, rewards, logps, posterior, prior = everything
    done = finish_metrics(part(everything, slice(None)))
    q = torch.distributions.Categorical(logits=posterior.double())
    p = torch.distributions.Categorical(logits=prior.double())
    usage = torch.distributions.Categorical(probs=q.probs.mean(0))
    expected = {
        "loss": loss.mean(),
        "rewards/chosen": rewards.chosen.mean(),
        "rewards/rejected": rewards.rejected.mean(),
        "rewards/margins": (rewards.chosen - rewards.rejected).mean(),
        "rewards/accuracies": (rewards.chosen > rewards.rejected).double().mean(),
        "logps/chosen": logps[:6].mean().detach(),
        "logps/rejected": logps[6:].mean().detach(),
        "lpc/kl": torch.distributions.kl_divergence(q, p).mean(),
        "lpc/entropy_q": q.entropy().mean(),
        "lpc/entropy_p": p.entropy().mean(),
        "lpc/agreement": (posterior.argmax(-1) == prior.argmax(-1)).double().mean(),
        "lpc/perplexity": usage.entropy().exp(),
        "lpc/information": usage.entropy() - q.entropy().mean(),
        "lpc/active_codes": posterior.argmax(-1).unique().numel(),
    }
    assert done == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def code_metrics(posterior: Tensor) -> dict[str, float]:
    pairs = len(posterior)
    zeros = torch.zeros(pairs)
    rewards = Rewards(chosen=zeros, rejected=zeros)
    return finish_metrics(pair_metrics(zeros, rewards, torch.zeros(2 * pairs), posterior, torch.zeros_like(posterior)))


def test_a_flat_posterior_is_seen_as_collapsed() -> None:
    done = code_metrics(torch.zeros(8, 16))
    assert done["lpc/perplexity"] == pytest.approx(16)
    assert done["lpc/information"] == pytest.approx(0, abs=1e-9)
    assert done["lpc/active_codes"] == 1


def test_codes_that_are_certain_are_all_active() -> None:
    done = code_metrics(torch.eye(16)[[0, 0, 5, 5, 9, 9, 15, 15]] * 1e3)
    assert done["lpc/perplexity"] == pytest.approx(4)
    assert done["lpc/information"] == pytest.approx(math.log(4))
    assert done["lpc/active_codes"] == 4


def test_a_tie_is_not_accurate() -> None:
    chosen = torch.tensor([0.5, 0.5])
    rewards = Rewards(chosen=chosen, rejected=torch.tensor([0.5, 0.4]))
    assert finish_metrics(pair_metrics(chosen, rewards, torch.zeros(4)))["rewards/accuracies"] == 0.5


def test_without_codes_there_are_no_code_metrics() -> None:
    loss, rewards, logps, _, _ = random_pairs(3)
    assert not [name for name in finish_metrics(pair_metrics(loss, rewards, logps)) if name.startswith("lpc/")]


def test_errors() -> None:
    loss, rewards, logps, posterior, prior = random_pairs(3)
    with pytest.raises(ValueError, match="both posterior_logits and prior_logits, or neither"):
        pair_metrics(loss, rewards, logps, posterior)
    with pytest.raises(ValueError, match="metrics of 0 pairs cannot be averaged"):
        finish_metrics({"pairs": torch.tensor(0.0)})
    with pytest.raises(ValueError, match="cannot add metrics of different names"):
        sum_metrics([pair_metrics(loss, rewards, logps), pair_metrics(loss, rewards, logps, posterior, prior)])
    with pytest.raises(ValueError, match="cannot add metrics"):
        sum_metrics([])
