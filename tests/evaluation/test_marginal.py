"""The marginal over codes and the exact posterior of support sets, against NumPy, pair by pair and code by code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_lpc.config import LatentConfig, LossConfig
from megatron_lpc.evaluation.marginal import (
    log_likelihoods,
    log_prior,
    metrics_by_latent,
    mixture_is_correct,
    swapped_is_correct,
    with_exact_posterior,
)
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.support import GroupLatents

PAIRS, CODES = 40, 3
GROUPS = ["a", "b"] * (PAIRS // 2)
LOSSES = [
    LossConfig(loss_type="dpo", beta=0.3),
    LossConfig(loss_type="dpo", beta=0.3, rpo_alpha=2.0),
    LossConfig(loss_type="ipo", beta=0.5),
    LossConfig(loss_type="simpo", beta=2.0, simpo_gamma=0.4),
]


@pytest.fixture(params=LOSSES, ids=lambda loss: f"{loss.loss_type}-{loss.rpo_alpha}")
def loss(request: pytest.FixtureRequest) -> LossConfig:
    return request.param


@pytest.fixture
def table() -> PairTable:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return PairTable(
        example_index=torch.arange(PAIRS),
        logps=-20 + 4 * normal(PAIRS, 1, 2),
        code_logps=-20 + 8 * normal(PAIRS, CODES, 2),
        reference_logps=-20 + normal(PAIRS, 2),
        response_length=torch.randint(5, 8, (PAIRS, 2), generator=generator).double(),
        posterior_logits=normal(PAIRS, CODES),
        prior_logits=2 * normal(PAIRS, CODES),
        latent_mean=normal(PAIRS, 0),
    )


def likelihood(loss: LossConfig, table: PairTable, pair: int, code: int, *, exchanged: bool = False) -> float:
    """Of the pair's label, or of the opposite one, under a code."""
    logps = table.code_logps[pair, code].numpy()
    length = table.response_length[pair].numpy()
    if loss.loss_type == "simpo":
        scores = logps / length
    else:
        scores = logps - table.reference_logps[pair].numpy()
        scores = scores / length if loss.loss_type == "ipo" else scores
    difference = scores[1] - scores[0] if exchanged else scores[0] - scores[1]
    if loss.loss_type == "ipo":
        return float(np.exp(-((difference - 1 / (2 * loss.beta)) ** 2)))
    gamma = loss.simpo_gamma if loss.loss_type == "simpo" else 0.0
    return float(1 / (1 + np.exp(-(loss.beta * difference - gamma))))


def joint(loss: LossConfig, table: PairTable, pair: int, code: int) -> float:
    """Likelihood of the pair's label and, with `rpo_alpha`, of its chosen response, per token."""
    average = float(table.code_logps[pair, code, 0] / table.response_length[pair, 0])
    return likelihood(loss, table, pair, code) * float(np.exp(loss.rpo_alpha * average))


def prior(table: PairTable, pair: int) -> np.ndarray:
    weights = np.exp(table.prior_logits[pair].numpy())
    return weights / weights.sum()


def test_marginal(loss: LossConfig, table: PairTable) -> None:
    metrics = metrics_by_latent(loss, table, ("prior", "codes"))
    assert list(metrics) == ["prior", "marginal"]
    right, losses, margins = 0, [], []
    for pair in range(PAIRS):
        p = prior(table, pair)
        as_labelled = sum(p[code] * likelihood(loss, table, pair, code) for code in range(CODES))
        opposite = sum(p[code] * likelihood(loss, table, pair, code, exchanged=True) for code in range(CODES))
        if loss.loss_type == "dpo":
            assert as_labelled + opposite == pytest.approx(1)
        right += as_labelled > opposite
        losses.append(-np.log(sum(p[code] * joint(loss, table, pair, code) for code in range(CODES))))
        divisor = table.response_length[pair].numpy() if loss.loss_type == "simpo" else 1
        reference = 0 if loss.loss_type == "simpo" else table.reference_logps[pair].numpy()
        rewards = loss.beta * p @ ((table.code_logps[pair].numpy() - reference) / divisor)
        margins.append(rewards[0] - rewards[1])
    assert 5 < right < PAIRS - 5
    assert metrics["marginal"]["rewards/accuracies"] == right / PAIRS
    assert metrics["marginal"]["loss"] == pytest.approx(np.mean(losses), rel=1e-10)
    assert metrics["marginal"]["rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-10)
    assert metrics["marginal"]["lpc/kl"] == metrics["prior"]["lpc/kl"]


def test_exact_support(loss: LossConfig, table: PairTable) -> None:
    prompts = [pair // 2 for pair in range(PAIRS)]
    latents = GroupLatents.estimate(
        table.posterior_logits, log_likelihoods(loss, table), GROUPS, prompts, pairs=3, seed=1
    )
    weights = latents.exact_log_weights(GROUPS, log_prior(table))
    correct = mixture_is_correct(loss, table, weights)
    expected = []
    for pair, group in enumerate(GROUPS):
        support = [i for i, other in enumerate(GROUPS) if other == group and prompts[i] in latents.prompts[group]]
        assert len(support) == 3
        w = prior(table, pair)
        for code in range(CODES):
            w[code] *= np.prod([joint(loss, table, i, code) for i in support])
        w /= w.sum()
        torch.testing.assert_close(weights[pair].softmax(-1), torch.from_numpy(w), rtol=1e-9, atol=1e-12)
        as_labelled = sum(w[code] * likelihood(loss, table, pair, code) for code in range(CODES))
        opposite = sum(w[code] * likelihood(loss, table, pair, code, exchanged=True) for code in range(CODES))
        expected.append(as_labelled > opposite)
    assert correct.tolist() == expected
    assert not torch.equal(correct, mixture_is_correct(loss, table, log_prior(table))), "support changes something"


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_exact_posterior(loss: LossConfig, table: PairTable, temperature: float) -> None:
    latent = LatentConfig(latent_inference="exact", codebook_size=CODES, exact_temperature=temperature)
    found = with_exact_posterior(latent, loss, table).posterior_logits.softmax(-1)
    for pair in range(PAIRS):
        likelihoods = np.array([joint(loss, table, pair, code) for code in range(CODES)])
        weights = prior(table, pair) * likelihoods ** (1 / temperature)
        torch.testing.assert_close(found[pair], torch.from_numpy(weights / weights.sum()), rtol=1e-9, atol=1e-12)


def test_swapped_is_by_the_support_sets_of_the_other_groups(loss: LossConfig, table: PairTable) -> None:
    groups = ["a", "b", "c"] * (PAIRS // 3) + ["z"] * (PAIRS % 3)
    generator = torch.Generator().manual_seed(5)
    sums = {group: 3 * torch.randn(CODES, generator=generator, dtype=torch.float64) for group in "abc"}
    latents = GroupLatents(mixtures={}, log_likelihoods=sums, prompts={})
    found = swapped_is_correct(loss, table, latents, groups)
    assert found is not None
    for pair, group in enumerate(groups):
        correct = []
        for other in sums.keys() - {group} if group in sums else ["z"]:
            weights = prior(table, pair) * np.exp(sums.get(other, torch.zeros(CODES)).numpy())
            right, wrong = (
                sum(weights[code] * likelihood(loss, table, pair, code, exchanged=exchanged) for code in range(CODES))
                for exchanged in (False, True)
            )
            correct.append(right > wrong)
        assert found[pair] == np.mean(correct)
    assert len(set(found.tolist())) == 3
    alone = GroupLatents(mixtures={}, log_likelihoods={"a": sums["a"]}, prompts={})
    assert swapped_is_correct(loss, table, alone, groups) is None
