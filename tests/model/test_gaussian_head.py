"""The Gaussian latent: in float64 against torch.distributions, its context, and its noise."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.distributions import Normal, kl_divergence

from megatron_lpc.config import LatentConfig
from megatron_lpc.config.gaussian_head_sizes import gaussian_head_sizes
from megatron_lpc.losses import LatentState, gaussian_kl
from megatron_lpc.model.build_head import build_latent_head
from megatron_lpc.model.counter_noise import normal_noise
from megatron_lpc.model.head_parts import pair_features

HIDDEN_SIZE = 12
STATE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)


def build(**options):
    latent = LatentConfig(latent_mode="gaussian", latent_size=5, latent_mlp_hidden_size=7, **options)
    config = TransformerConfig(num_layers=1, hidden_size=HIDDEN_SIZE, num_attention_heads=1)
    head = build_latent_head(config, latent, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    head.code_unit.fill_(3.0)
    return head


def summaries(pairs: int) -> torch.Tensor:
    return torch.randn(3, pairs, HIDDEN_SIZE, generator=torch.Generator().manual_seed(2))


def ask(head, pairs, sources, mixture=None, inputs=None):
    h_x, h_w, h_l = summaries(pairs) if inputs is None else inputs
    return head(h_x, h_w, h_l, torch.arange(pairs), STATE, sources, mixture)


def decoded(head, latent):
    return 3 * (latent @ head.decoder.weight.T + head.decoder.bias)


@pytest.mark.parametrize("posterior_input", ["difference", "concat", "bilinear"])
def test_number_of_parameters(posterior_input: str) -> None:
    head = build(posterior_input=posterior_input)
    sizes = gaussian_head_sizes(head.latent, HIDDEN_SIZE)
    matrices = {name: matrix for name, matrix in head.named_parameters() if matrix.ndim == 2}
    assert sum(matrix.numel() for matrix in matrices.values()) == sizes.num_matrix_elements
    assert {f"{name}.weight" for name in sizes.encoder_inputs} == matrices.keys() - {"decoder.weight"}


def test_kl_is_that_of_two_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(3)
    mean, log_variance = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(1, 5), torch.zeros(1, 5)).item() == 0


def test_by_itself_a_pair_has_its_own_posterior() -> None:
    head = build(posterior_context=2)
    _, h_w, h_l = summaries(6)
    mean, log_variance = head.encoder(pair_features(head.latent, h_w, h_l)).chunk(2, dim=-1)
    mixture = torch.randn(6, 5)
    output = ask(head, 6, ("posterior", "prior", "mixture", "none"), mixture)
    torch.testing.assert_close(output.mean, mean)
    torch.testing.assert_close(output.kl, gaussian_kl(mean, log_variance))
    torch.testing.assert_close(output.z[0], decoded(head, mean))
    torch.testing.assert_close(output.z[1], 3 * head.decoder.bias.expand(6, -1))
    torch.testing.assert_close(output.z[2], decoded(head, mixture))
    assert not output.z[3].any()


def test_several_latents_that_all_pairs_share() -> None:
    head = build()
    mixture = torch.randn(3, 1, 5)
    shared = ask(head, 6, ("mixture", "none"), mixture).z
    assert shared.shape[:2] == (4, 1)
    torch.testing.assert_close(shared[:3, 0], decoded(head, mixture[:, 0]))
    with_own = ask(head, 6, ("mixture", "posterior"), mixture).z
    torch.testing.assert_close(with_own[:3], shared[:3].expand(-1, 6, -1))
    torch.testing.assert_close(with_own[3:], ask(head, 6, ("posterior",)).z)


@pytest.mark.parametrize("context", [0, 2])
def test_training_samples_the_posterior_of_the_other_pairs(context: int) -> None:
    head = build(posterior_context=context)
    _, h_w, h_l = summaries(6)
    of_pairs = head.encoder(pair_features(head.latent, h_w, h_l))
    if context:
        others = [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
        of_pairs = torch.stack([of_pairs[pairs].mean(0) for pairs in others])
    mean, log_variance = of_pairs.chunk(2, dim=-1)
    noise = normal_noise(torch.arange(6), 5, seed=1)
    output = ask(head, 6, ("train",))
    torch.testing.assert_close(output.z[0], decoded(head, mean + (log_variance / 2).exp() * noise))
    torch.testing.assert_close(output.kl, gaussian_kl(mean, log_variance))


def test_normal_noise_is_normal_and_of_its_sample_alone() -> None:
    noise = normal_noise(torch.arange(4000), 5, seed=3)
    places = (torch.arange(noise.numel(), dtype=torch.float64) + 0.5) / noise.numel()
    distance = Normal(0.0, 1.0).cdf(noise.double().flatten().sort().values) - places
    assert distance.abs().max() < 0.01
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.06
    assert torch.equal(normal_noise(torch.arange(7, 9), 5, seed=3), noise[7:9])
    assert not torch.equal(normal_noise(torch.arange(7, 9), 5, seed=4), noise[7:9])


@pytest.mark.parametrize(
    ("source", "message"), [("codes", "`gaussian` has no codes latent"), ("mixture", r"PairBatch\.mixture")]
)
def test_what_is_missing_is_named(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(build(), 2, (source,))
