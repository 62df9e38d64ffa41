"""The LPC head learns as fast in a model of any width, whatever the backbone's learning rate."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lpc.config import Config, LatentConfig, ModelConfig, TrainingConfig
from megatron_lpc.model.build_head import build_latent_head
from megatron_lpc.training.learning_rates import head_learning_rates


@pytest.mark.parametrize(
    "latent",
    [
        LatentConfig(codebook_size=3, latent_mlp_hidden_size=16, posterior_input="concat"),
        LatentConfig(codebook_size=3, latent_mlp_hidden_size=16, latent_mode="continuous"),
        LatentConfig(codebook_size=3, latent_mlp_hidden_size=16, latent_inference="exact"),
        LatentConfig(latent_mode="embedding", known_groups=["a"]),
        LatentConfig(latent_mode="gaussian", latent_size=4, latent_mlp_hidden_size=16, posterior_input="concat"),
    ],
    ids=["amortized", "continuous", "exact", "embedding", "gaussian"],
)
def test_every_parameter_of_the_head_has_a_rate(latent: LatentConfig) -> None:
    config = Config(
        latent=latent,
        model=ModelConfig(hidden_size=8),
        training=TrainingConfig(latent_lr=0.01, codebook_lr=0.5),
    )
    head = build_latent_head(
        TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1), config.latent, seed=1
    )
    assert head is not None
    rates = head_learning_rates(config)
    parameters = dict(head.named_parameters())
    assert rates.keys() == parameters.keys()
    codebook_lr = 0.5 * (256 / 8) ** 0.5
    gives_latent = dict.fromkeys(("codebook", "network.2.bias", "vectors", "decoder.bias"), codebook_lr)
    for name, parameter in parameters.items():
        if name in gives_latent:
            expected = gives_latent[name]
        elif name in ("network.2.weight", "decoder.weight"):
            expected = codebook_lr / parameter.size(1)
        else:
            latent_lr = 0.001 if name.startswith("prior.") else 0.01
            expected = latent_lr if parameter.ndim == 1 else latent_lr * 256 / parameter.size(1)
        assert rates[name] == pytest.approx(expected), name


@pytest.mark.parametrize("hidden_size", [64, 1024])
def test_one_step_changes_the_networks_alike_in_any_width(hidden_size: int) -> None:
    """By Adam's first step, the sign of the gradient: the logits of an input that it was taken for."""
    config = Config(latent=LatentConfig(codebook_size=3), model=ModelConfig(hidden_size=hidden_size))
    core = TransformerConfig(num_layers=1, hidden_size=hidden_size, num_attention_heads=1)
    head = build_latent_head(core, config.latent, seed=1)
    rates = head_learning_rates(config)
    network, x = head.posterior, torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.0)
        network[0].weight.normal_(std=hidden_size**-0.5, generator=torch.Generator().manual_seed(2))
    before = network(x)
    before[0, 0].backward()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(rates[f"posterior.{name}"] * parameter.grad.sign())
    change = float((network(x) - before)[0, 0].detach())
    assert 0.7 < change < 1.4
