"""KL with free bits, the entropy of the codes' usage, and their sum."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lpc.config.schema import LatentConfig
from megatron_lpc.losses import kl_with_free_bits, latent_loss, swap_divergence, usage_entropy


def test_free_bits_are_bits_and_stop_the_gradient_per_pair() -> None:
    kl = torch.tensor([0.1, 0.6, 0.8, 2.0]).requires_grad_()
    paid = kl_with_free_bits(kl, free_bits=1.0)
    torch.testing.assert_close(paid, torch.tensor([math.log(2), math.log(2), 0.8, 2.0]))
    paid.sum().backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [0, 0, 1, 1]


def test_usage_entropy_at_its_ends() -> None:
    assert usage_entropy(torch.eye(6) * 100).item() == pytest.approx(math.log(6))
    assert usage_entropy(torch.zeros(3, 6)).item() == pytest.approx(math.log(6))
    assert usage_entropy(torch.eye(6)[[2, 2, 2]] * 100).item() == pytest.approx(0, abs=1e-6)


def test_usage_entropy_gradient_is_exact_and_finite_when_codes_have_no_weight() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(usage_entropy, logits.requires_grad_())
    certain = (torch.eye(5)[[0, 0, 1]] * 1e4).requires_grad_()
    usage_entropy(certain).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_latent_loss_is_their_weighted_sum() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    kl = torch.tensor([0.1, 0.5, 1.5])
    config = LatentConfig(kl_free_bits=0.5, usage_entropy_weight=0.2)
    expected = 0.05 * torch.tensor([0.5 * math.log(2), 0.5, 1.5]).mean() - 0.2 * usage_entropy(logits)
    torch.testing.assert_close(latent_loss(config, 0.05, kl, logits).mean(), expected)
    torch.testing.assert_close(latent_loss(LatentConfig(), 0.05, kl, logits), 0.05 * kl)


def test_swap_divergence_is_the_symmetric_kl_of_mirrored_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, swapped = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    mirror = [code ^ 1 for code in range(6)]
    q = torch.distributions.Categorical(logits=logits[:, mirror])
    s = torch.distributions.Categorical(logits=swapped)
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(swap_divergence(logits, swapped), (kl(q, s) + kl(s, q)) / 2)
    assert torch.autograd.gradcheck(swap_divergence, (logits, swapped))


def test_swap_divergence_is_zero_for_mirrored_posteriors_and_has_a_gradient_where_both_are_sure_of_one_code() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(swap_divergence(logits, logits[:, [1, 0, 3, 2]]), torch.zeros(3))
    sure = torch.tensor([[20.0, 0.0]]).requires_grad_()
    swap_divergence(sure, sure.detach()).sum().backward()
    assert sure.grad is not None
    assert sure.grad.abs().max() > 0.1
