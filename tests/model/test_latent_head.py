"""The networks of the LPC head have the sizes that the options say, here and in exported models."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lpc.config import LatentConfig
from megatron_lpc.config.latent_head_sizes import latent_head_sizes
from megatron_lpc.convert.hub.configuration_lpc import LPCConfig
from megatron_lpc.convert.hub.modeling_lpc import LatentHead as ShippedHead
from megatron_lpc.losses import LatentState
from megatron_lpc.model.build_head import build_latent_head
from megatron_lpc.model.head_parts import pair_features

HIDDEN_SIZE = 12
OPTIONS = [
    LatentConfig(codebook_size=5),
    LatentConfig(codebook_size=5, latent_mlp_hidden_size=7, posterior_input="difference"),
    LatentConfig(codebook_size=3, latent_mlp_hidden_size=20, posterior_input="bilinear"),
]
EXACT = LatentConfig(codebook_size=5, latent_mlp_hidden_size=7, latent_inference="exact")
STATE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)


def build(latent: LatentConfig):
    config = TransformerConfig(num_layers=1, hidden_size=HIDDEN_SIZE, num_attention_heads=1)
    head = build_latent_head(config, latent, seed=1)
    head.code_unit.fill_(1.0)
    return head


def with_mode(latent: LatentConfig, mode: str) -> LatentConfig:
    return LatentConfig(**asdict(latent) | {"latent_mode": mode})


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("latent", OPTIONS)
def test_number_of_parameters(latent: LatentConfig) -> None:
    head = build(latent)
    sizes = latent_head_sizes(latent, HIDDEN_SIZE)
    assert count(head) == sizes.num_parameters
    matrices = [parameter for parameter in head.parameters() if parameter.ndim == 2]
    assert sum(matrix.numel() for matrix in matrices) == sizes.num_matrix_elements


def test_exact_inference_has_no_posterior_network() -> None:
    head = build(EXACT)
    assert not [name for name, _ in head.named_parameters() if name.startswith("posterior")]
    sizes = latent_head_sizes(EXACT, HIDDEN_SIZE)
    assert count(head) == sizes.num_parameters
    multiplied = [parameter for parameter in head.prior.parameters() if parameter.ndim == 2]
    assert sum(matrix.numel() for matrix in multiplied) == sizes.num_matrix_elements


@pytest.mark.parametrize("latent", [*OPTIONS, EXACT])
def test_source_codes_gives_every_code_by_itself(latent: LatentConfig) -> None:
    head = build(latent)
    torch.nn.init.normal_(head.codebook, generator=torch.Generator().manual_seed(1))
    hidden = torch.ones(2, HIDDEN_SIZE)
    output = head(hidden, hidden, hidden, torch.arange(2), STATE, ("prior", "codes", "none"), None)
    assert output.z.shape == (latent.codebook_size + 2, 2, HIDDEN_SIZE)
    for code, z in zip(head.codebook, output.z[1:-1], strict=True):
        assert torch.equal(z, code.expand(2, -1))
    assert not output.z[-1].any()
    shared = head(hidden, hidden, hidden, torch.arange(2), STATE, ("codes", "none"), None)
    assert torch.equal(shared.z.expand(-1, 2, -1), output.z[1:])
    assert shared.z.size(1) == 1
    assert (output.posterior_logits is None) == (output.kl is None) == (latent is EXACT)


@pytest.mark.parametrize("latent", OPTIONS)
def test_the_control_has_as_many_parameters(latent: LatentConfig) -> None:
    head, control = build(latent), build(with_mode(latent, "continuous"))
    per_hidden_unit = 2 * HIDDEN_SIZE + 1
    assert abs(count(head) - count(control)) <= per_hidden_unit / 2


@pytest.mark.parametrize("latent", [*OPTIONS, *(with_mode(latent, "continuous") for latent in OPTIONS), EXACT])
def test_the_shipped_head_has_the_same_tensors(latent: LatentConfig) -> None:
    backbone = {"model_type": "llama", "hidden_size": HIDDEN_SIZE, "num_attention_heads": 1}
    shipped = ShippedHead(LPCConfig(text_config=backbone, latent=asdict(latent)))
    shapes = {name: tensor.shape for name, tensor in build(latent).state_dict().items() if tensor is not None}
    assert shapes == {name: tensor.shape for name, tensor in shipped.state_dict().items()}


@pytest.mark.parametrize("latent", OPTIONS)
def test_the_posterior_reads_what_its_option_says(latent: LatentConfig) -> None:
    """Weights are set so that each posterior logit is the sum of the input."""
    head = build(latent)
    with torch.no_grad():
        for parameter in head.posterior.parameters():
            parameter.fill_(1.0)
    h_x, h_w, h_l = torch.randn(3, 2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    state = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
    output = head(h_x, h_w, h_l, torch.arange(2), state, ("none",), None)

    def unit(hidden):
        return hidden / hidden.square().mean(-1, keepdim=True).sqrt()

    total = {
        "concat": unit(h_w).sum(-1) + unit(h_l).sum(-1),
        "difference": unit(h_w - h_l).sum(-1),
        "bilinear": unit(h_w).sum(-1) + unit(h_l).sum(-1) + (unit(h_w) * unit(h_l)).sum(-1),
    }[latent.posterior_input]
    mlp_hidden_size = latent.latent_mlp_hidden_size or HIDDEN_SIZE
    expected = 1 + mlp_hidden_size * torch.nn.functional.gelu(1 + total)
    torch.testing.assert_close(output.posterior_logits, expected[:, None].expand(-1, latent.codebook_size))


@pytest.mark.parametrize("mode", ["lpc", "continuous"])
def test_summaries_are_normalized_and_codes_have_a_unit(mode: str) -> None:
    """Another scale of the hidden states gives the same latents; another unit gives that multiple of them."""
    head = build(with_mode(OPTIONS[1], mode))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    summaries = torch.randn(3, 2, HIDDEN_SIZE, generator=generator)
    state = LatentState(tau=1.0, prior_mix=0.5, kl_weight=0.0)
    sources = ("train", "prior", "none")

    def latents(scale: float, unit: float) -> torch.Tensor:
        head.code_unit.fill_(unit)
        return head(*scale * summaries, torch.arange(2), state, sources, None).z

    torch.testing.assert_close(latents(1.0, 1.0), latents(50.0, 1.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(3 * latents(1.0, 1.0), latents(1.0, 3.0))
    assert head(*0 * summaries, torch.arange(2), state, sources, None).z.isfinite().all()


def test_a_source_without_its_mixture_weights_is_refused() -> None:
    state = STATE
    hidden = torch.zeros(2, HIDDEN_SIZE)
    for source in ("train", "posterior"):
        with pytest.raises(ValueError, match=f"`{source}` needs a posterior network"):
            build(EXACT)(hidden, hidden, hidden, torch.arange(2), state, (source,), None)
    with pytest.raises(ValueError, match=r"needs PairBatch\.mixture"):
        build(OPTIONS[0])(hidden, hidden, hidden, torch.arange(2), state, ("mixture",), None)
    control = build(with_mode(OPTIONS[0], "continuous"))
    with pytest.raises(ValueError, match="has no posterior latent"):
        control(hidden, hidden, hidden, torch.arange(2), state, ("posterior",), None)


STATE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)


def summaries(pairs: int) -> torch.Tensor:
    return torch.randn(3, pairs, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("latent", OPTIONS)
def test_in_an_episode_the_posterior_is_of_the_other_pairs(latent: LatentConfig) -> None:
    """A pair's own label reaches neither its latent nor its KL; evaluation has each pair by itself."""
    head = build(replace(latent, posterior_context=2))
    torch.nn.init.normal_(head.codebook)
    h_x, h_w, h_l = summaries(6)
    output = head(h_x, h_w, h_l, torch.arange(6), STATE, ("train",), None)
    own = head.posterior(pair_features(latent, h_w, h_l))
    torch.testing.assert_close(output.posterior_logits[4], own[3] + own[5])
    torch.testing.assert_close(output.own_logits, own)
    log_q, log_p = output.posterior_logits.log_softmax(-1), output.prior_logits.log_softmax(-1)
    torch.testing.assert_close(output.kl, (log_q.exp() * (log_q - log_p)).sum(-1))

    changed = h_w.clone()
    changed[4] += 1
    other = head(h_x, changed, h_l, torch.arange(6), STATE, ("train",), None)
    differs = (other.z[0] != output.z[0]).any(-1)
    close = torch.isclose(other.z[0], output.z[0], atol=1e-5).all(-1)
    assert differs[[3, 5]].all()
    assert close[[0, 1, 2, 4]].all()

    alone = head(h_x, h_w, h_l, torch.arange(6), STATE, ("prior", "posterior"), None)
    torch.testing.assert_close(alone.posterior_logits, own)


@pytest.mark.parametrize("latent", OPTIONS)
def test_swapped_logits_are_of_the_exchanged_pair_in_training_only(latent: LatentConfig) -> None:
    head = build(replace(latent, codebook_size=4, posterior_context=1, swap_guidance_weight=0.5))
    h_x, h_w, h_l = summaries(4)
    output = head(h_x, h_w, h_l, torch.arange(4), STATE, ("train",), None)
    exchanged = head(h_x, h_l, h_w, torch.arange(4), STATE, ("train",), None)
    torch.testing.assert_close(output.swapped_logits, exchanged.own_logits)
    assert not torch.allclose(output.swapped_logits, output.own_logits)
    assert head(h_x, h_w, h_l, torch.arange(4), STATE, ("posterior",), None).swapped_logits is None
    assert build(latent)(h_x, h_w, h_l, torch.arange(4), STATE, ("train",), None).swapped_logits is None
