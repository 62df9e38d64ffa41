"""The vectors of known groups, and the generic vector of all others."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lpc.config import LatentConfig
from megatron_lpc.losses import LatentState
from megatron_lpc.model.build_head import build_latent_head
from megatron_lpc.model.counter_noise import uniform_noise

HIDDEN_SIZE = 12
STATE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
HIDDEN = torch.zeros(4, HIDDEN_SIZE, dtype=torch.float64)
GROUPS = torch.tensor([2, 0, 1, 2])


def build(**options):
    latent = LatentConfig(latent_mode="embedding", known_groups=["a", "b"], **options)
    config = TransformerConfig(num_layers=1, hidden_size=HIDDEN_SIZE, num_attention_heads=1)
    head = build_latent_head(config, latent, seed=1).double()
    torch.nn.init.normal_(head.vectors, generator=torch.Generator().manual_seed(1))
    head.code_unit.fill_(3.0)
    return head


def ask(head, source, *, samples=None, mixture=None, group_ids=GROUPS):
    samples = torch.arange(len(GROUPS)) if samples is None else samples
    hidden = torch.zeros(len(samples), HIDDEN_SIZE, dtype=torch.float64)
    return head(hidden, hidden, hidden, samples, STATE, (source,), mixture, group_ids).z[0]


def test_known_groups_add_their_offset_to_the_generic_vector() -> None:
    head = build()
    generic, a, b = (3 * vector for vector in head.vectors)
    torch.testing.assert_close(ask(head, "group"), torch.stack([generic + b, generic, generic + a, generic + b]))
    torch.testing.assert_close(ask(head, "prior"), generic.expand(4, -1))
    mixture = torch.randn(4, HIDDEN_SIZE, dtype=torch.float64)
    torch.testing.assert_close(ask(head, "mixture", mixture=mixture), 3 * mixture)
    assert not ask(head, "none").any()


def test_training_drops_groups_as_often_as_asked_whatever_the_batch() -> None:
    head = build(group_dropout=0.3)
    samples, groups = torch.arange(4000), torch.tensor([1, 2]).repeat(2000)
    z = ask(head, "train", samples=samples, group_ids=groups)
    known = ask(head, "group", samples=samples, group_ids=groups)
    is_known, is_generic = (z == known).all(1), (z == ask(head, "prior", samples=samples)).all(1)
    assert (is_known ^ is_generic).all()
    assert is_generic.double().mean() == pytest.approx(0.3, abs=0.03)
    alone = ask(head, "train", samples=samples[17:19], group_ids=groups[17:19])
    assert torch.equal(alone, z[17:19])
    torch.testing.assert_close(
        ask(build(group_dropout=0.0), "train", samples=samples, group_ids=groups), known, rtol=0, atol=0
    )


def test_uniform_noise_is_uniform() -> None:
    noise = uniform_noise(torch.arange(2000), 5, seed=3)
    expected = (torch.arange(noise.numel(), dtype=torch.float64) + 0.5) / noise.numel()
    assert (noise.flatten().sort().values - expected).abs().max() < 0.02
    assert not torch.equal(noise, uniform_noise(torch.arange(2000), 5, seed=4))


@pytest.mark.parametrize(
    ("source", "message"),
    [("posterior", "`embedding` has no posterior latent"), ("mixture", r"PairBatch\.mixture"), ("group", "group_ids")],
)
def test_what_is_missing_is_named(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(build(), source, group_ids=None)
