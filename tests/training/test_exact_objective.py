"""Exact inference: loss, gradients and metrics against the formula, written out code by code in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from lpc_kernels import pair_logps
from torch import Tensor

from megatron_lpc.config import Config, LatentConfig, LossConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.losses import LatentState
from megatron_lpc.model import LatentOutput, PairScores
from megatron_lpc.training.objective import TrainingLoss, training_query

CODES, HIDDEN_SIZE, VOCAB = 5, 6, 17
STATE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
LOSSES = {
    "dpo": LossConfig(loss_type="dpo", beta=0.7),
    "ipo": LossConfig(loss_type="ipo", beta=0.4),
    "ipo_summed": LossConfig(loss_type="ipo", beta=0.4, ipo_length_average=False),
    "simpo": LossConfig(loss_type="simpo", beta=2.0),
    "dpo_fluent": LossConfig(loss_type="dpo", beta=0.7, rpo_alpha=0.6),
    "ipo_fluent": LossConfig(loss_type="ipo", beta=0.4, rpo_alpha=0.6),
}


@dataclass
class Inputs:
    """Three pairs, and everything that a gradient flows to; fp64."""

    batch: PairBatch
    hidden: Tensor
    """[N, H] at loss tokens."""
    lm_head_weight: Tensor
    codebook: Tensor
    prior_logits: Tensor

    @property
    def trained(self) -> tuple[Tensor, ...]:
        return self.hidden, self.lm_head_weight, self.codebook, self.prior_logits


@pytest.fixture
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    pairs = [EncodedPair([1, 2], [3, 4, 5], [6]), EncodedPair([7], [8], [9, 10]), EncodedPair([2], [2, 3], [4, 16, 0])]
    batch = collate(pairs, [0, 1, 2], [0, 1, 2], pad_id=0)
    batch = replace(batch, reference_logps=-8 * torch.rand(6, generator=generator, dtype=torch.float64))
    return Inputs(
        batch,
        hidden=normal(len(batch.loss_index), HIDDEN_SIZE),
        lm_head_weight=normal(VOCAB, HIDDEN_SIZE),
        codebook=normal(CODES, HIDDEN_SIZE),
        prior_logits=normal(3, CODES),
    )


def ours(config: Config, inputs: Inputs) -> tuple[Tensor, PairScores, dict[str, Tensor]]:
    """What training computes from the hidden states on."""
    batch = inputs.batch
    query = training_query(config, STATE)
    assert query.sources == ("codes",)
    assert query.make_pair_loss is not None
    latent = LatentOutput(z=inputs.codebook[:, None].expand(-1, 3, -1), prior_logits=inputs.prior_logits)
    result = pair_logps(
        inputs.hidden,
        inputs.lm_head_weight,
        batch.targets,
        batch.segment_ids,
        6,
        z=latent.z,
        pair_loss=query.make_pair_loss(batch, latent),
        algorithm=query.algorithm,
        chunk_size=4,
    )
    scores = PairScores(logps=result.logps, latent=latent, loss=result.loss, pair_losses=result.pair_losses)
    total, metrics = TrainingLoss(config, STATE)(batch, scores)
    return total, scores, metrics


def likelihoods(loss: LossConfig, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """[3, K] likelihood of each label under each code, of the opposite label, and of the label and the text of the
    chosen response together; pair by pair, code by code.
    """
    batch = inputs.batch
    rows = []
    texts = []
    for code in range(CODES):
        logits = (inputs.hidden + inputs.codebook[code]) @ inputs.lm_head_weight.T
        token_logps = logits.log_softmax(-1)[torch.arange(len(logits)), batch.targets]
        for pair in range(3):
            score = []
            texts.append(torch.exp(loss.rpo_alpha * token_logps[batch.segment_ids == pair].mean()))
            for response in (pair, pair + 3):
                total = token_logps[batch.segment_ids == response].sum()
                if loss.loss_type != "simpo":
                    total = total - batch.reference_logps[response]
                if loss.loss_type == "simpo" or (loss.loss_type == "ipo" and loss.ipo_length_average):
                    total = total / int(batch.response_length[response])
                score.append(total)
            for difference in (score[0] - score[1], score[1] - score[0]):
                if loss.loss_type == "ipo":
                    rows.append(torch.exp(-((difference - 1 / (2 * loss.beta)) ** 2)))
                else:
                    gamma = loss.simpo_gamma if loss.loss_type == "simpo" else 0.0
                    rows.append(1 / (1 + torch.exp(gamma - loss.beta * difference)))
    found = torch.stack(rows).view(CODES, 3, 2).permute(2, 1, 0)
    return found[0], found[1], found[0] * torch.stack(texts).view(CODES, 3).T


@pytest.mark.parametrize("algorithm", ["pairwise", "recompute"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_all_gradients(
    inputs: Inputs, name: str, temperature: float, algorithm: Literal["pairwise", "recompute"]
) -> None:
    latent = LatentConfig(latent_inference="exact", codebook_size=CODES, exact_temperature=temperature)
    config = Config(latent=latent, loss=LossConfig(**vars(LOSSES[name]) | {"logps_algorithm": algorithm}))
    total, scores, metrics = ours(config, inputs)
    found = torch.autograd.grad(total, inputs.trained)

    likelihood, opposite, joint = likelihoods(config.loss, inputs)
    prior = inputs.prior_logits.softmax(-1)
    weighted = prior * joint ** (1 / temperature)
    losses = -temperature * weighted.sum(1).log()
    expected = torch.autograd.grad(losses.sum(), inputs.trained)

    torch.testing.assert_close(scores.pair_losses, losses.detach(), rtol=1e-10, atol=1e-10)
    assert float(total.detach()) == pytest.approx(float(losses.detach().sum()), rel=1e-12)
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)

    posterior = (weighted / weighted.sum(1, keepdim=True)).detach()
    prior = prior.detach()
    assert float(metrics["lpc/kl"]) == pytest.approx(float(torch.xlogy(posterior, posterior / prior).sum()), rel=1e-8)
    assert float(metrics["lpc/entropy_q"]) == pytest.approx(float(-torch.xlogy(posterior, posterior).sum()), rel=1e-8)
    correct = (prior * likelihood).sum(1) > (prior * opposite).sum(1)
    assert int(metrics["rewards/accuracies"]) == int(correct.sum())
    assert float(metrics["loss"]) == pytest.approx(float(losses.detach().sum()), rel=1e-12)
    logps = (prior.T[:, :, None] * scores.logps.view(CODES, 2, 3).transpose(1, 2)).sum((0, 1))
    assert [float(metrics["logps/chosen"]), float(metrics["logps/rejected"])] == pytest.approx(logps.tolist())


@pytest.mark.parametrize("name", ["dpo", "dpo_fluent"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_pairs_of_an_episode_share_one_code(inputs: Inputs, temperature: float, name: str) -> None:
    latent = LatentConfig(
        latent_inference="exact", codebook_size=CODES, exact_temperature=temperature, posterior_context=2
    )
    config = Config(latent=latent, loss=LOSSES[name])
    total, scores, metrics = ours(config, inputs)
    found = torch.autograd.grad(total, inputs.trained)

    _, _, joint = likelihoods(config.loss, inputs)
    prior = inputs.prior_logits.softmax(-1).prod(0) ** (1 / 3)
    weighted = prior / prior.sum() * joint.prod(0) ** (1 / temperature)
    loss = -temperature * weighted.sum().log()
    expected = torch.autograd.grad(loss, inputs.trained)
    assert scores.pair_losses is not None
    torch.testing.assert_close(scores.pair_losses, (loss / 3).detach().expand(3), rtol=1e-10, atol=1e-10)
    assert float(total.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    posterior = (weighted / weighted.sum()).detach()
    entropy = float(-torch.xlogy(posterior, posterior).sum())
    assert float(metrics["lpc/entropy_q"]) == pytest.approx(3 * entropy, rel=1e-8)

    with pytest.raises(ValueError, match="3 pairs are not whole episodes of 2"):
        ours(replace(config, latent=replace(latent, posterior_context=1)), inputs)


def test_at_low_temperature_only_the_best_code_counts(inputs: Inputs) -> None:
    likelihood, _, _ = likelihoods(LOSSES["dpo"], inputs)
    best = -likelihood.max(1).values.log()
    latent = LatentConfig(latent_inference="exact", codebook_size=CODES, exact_temperature=1e-4)
    _, scores, _ = ours(Config(latent=latent, loss=LOSSES["dpo"]), inputs)
    torch.testing.assert_close(scores.pair_losses, best.detach(), rtol=0, atol=1e-4 * 3 * math.log(CODES) + 1e-3)


def test_equal_codes_are_the_plain_objective(inputs: Inputs) -> None:
    from megatron_lpc.losses import preference_loss

    inputs.codebook = torch.zeros(CODES, HIDDEN_SIZE, dtype=torch.float64, requires_grad=True)
    config = Config(latent=LatentConfig(latent_inference="exact", codebook_size=CODES), loss=LOSSES["dpo"])
    _, scores, metrics = ours(config, inputs)
    plain = preference_loss(config.loss, scores.logps[0], inputs.batch.reference_logps, inputs.batch.response_length)
    torch.testing.assert_close(scores.pair_losses, plain, rtol=1e-12, atol=1e-12)
    assert float(metrics["lpc/kl"]) == pytest.approx(0, abs=1e-12)
