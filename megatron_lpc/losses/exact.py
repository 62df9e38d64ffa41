"""Exact inference: all codes are enumerated, and a pair's loss is that of their marginal.

Under code k a pair has the plain objective's loss_k, and exp(-loss_k) is the likelihood of its label: the sigmoid
likelihood for dpo and simpo; for ipo, whose loss is a squared error, the Gaussian likelihood with that squared error as
its exponent (variance 1/2; the constant factor, which is the same for every code, is left out). With p(k|x) the prior:

    loss = -T log sum_k p(k|x) exp(-loss_k / T)

With `rpo_alpha` loss_k has the chosen response's negative log-prob per token under code k as well, so exp(-loss_k) is
the likelihood of the label times a power of the text's: a mixture of joint models, of which `prefers_chosen` and
`label_probability` predict the label.

At T = 1 this is the negative log of the marginal likelihood: what EM for a mixture of preference models maximises
(MaxMin-RLHF, arXiv 2402.08925; EM-DPO, arXiv 2510.15716), here by gradient and with a prior that reads the prompt. At
any T it is the minimum over all posteriors q of E_q[loss_k] + T KL(q || p), reached at the exact posterior
q_k = r_k, proportional to p(k|x) exp(-loss_k / T): what the amortised loss with KL weight T bounds from above.

Pairs of one annotator may share their code (`pool_episodes`): their losses add, and the rest is the same.

The gradient is d loss / d loss_k = r_k and d loss / d log p(k|x) = -T r_k.

Shape legend: B pairs, K codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from megatron_lpc.config.schema import LossConfig
from megatron_lpc.losses.experts import by_episode
from megatron_lpc.losses.preference import preference_loss


def code_losses(config: LossConfig, logps: Tensor, reference_logps: Tensor | None, response_length: Tensor) -> Tensor:
    """[K, B] loss of each pair under each code, nats. Dtype and errors as of `preference_loss`.

    Args:
        logps: [K, 2B] summed response log-probs under each code, chosen first.
        reference_logps, response_length: [2B], as `preference_loss` takes them.
    """
    num_codes = len(logps)

    def of_every_code(values: Tensor) -> Tensor:
        """[2B] -> [2 K B], chosen first."""
        return values.view(2, 1, -1).expand(2, num_codes, -1).reshape(-1)

    policy = logps.view(num_codes, 2, -1).transpose(0, 1).reshape(-1)
    reference = None if reference_logps is None else of_every_code(reference_logps)
    return preference_loss(config, policy, reference, of_every_code(response_length)).view(num_codes, -1)


def pool_episodes(losses: Tensor, log_prior: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Losses [K, E] and log prior [E, K] of E episodes of `size` pairs, where the pairs of an episode share one code.

    Their labels are independent given the code, so likelihoods multiply. The prior of an episode is the geometric mean
    of its pairs' priors, normalised. (One comparison per annotator does not identify types, several do: EM-DPO.)

    Args:
        losses: [K, B] of `code_losses`, episode after episode.
        log_prior: [B, K] log p(k|x).

    Raises:
        ValueError: the pairs are not whole episodes.
    """
    if size == 1:
        return losses, log_prior
    prior_of_episodes = by_episode(log_prior, size).mean(dim=1).log_softmax(dim=-1)
    return losses.unflatten(1, (-1, size)).sum(dim=-1), prior_of_episodes


def marginal_loss(losses: Tensor, log_prior: Tensor, temperature: float) -> Tensor:
    """[B] -T log sum_k p(k|x) exp(-loss_k / T).

    Args:
        losses: [K, B] of `code_losses`.
        log_prior: [B, K] log p(k|x).
        temperature: T.
    """
    return -temperature * exact_posterior_logits(losses, log_prior, temperature).logsumexp(dim=-1)


def exact_posterior_logits(losses: Tensor, log_prior: Tensor, temperature: float) -> Tensor:
    """[B, K] log p(k|x) - loss_k / T, whose softmax is the exact posterior r. Arguments as of `marginal_loss`."""
    return log_prior - losses.T / temperature


def prior_gradient_term(posterior_logits: Tensor, log_prior: Tensor, temperature: float) -> Tensor:
    """A scalar of value 0 whose gradient is what `marginal_loss`, summed over the pairs, has through the prior.

    For where the marginal is computed with the prior as a constant: d loss / d log p(k|x) = -T r_k (the identity that
    EM rests on).

    Args:
        posterior_logits: [B, K] of `exact_posterior_logits`; no gradient flows into them.
        log_prior: [B, K] log p(k|x), with gradient.
        temperature: T.
    """
    expected = (posterior_logits.detach().softmax(dim=-1) * log_prior).sum()
    return -temperature * (expected - expected.detach())


def prefers_chosen(
    config: LossConfig, log_weights: Tensor, logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> Tensor:
    """[B] bool: whether a mixture of codes finds each pair's label likelier than the opposite one.

    sum_k w_k exp(-loss_k) against the same with chosen and rejected exchanged. For dpo the two add up to 1, so this
    is P(chosen > rejected) = sum_k w_k sigmoid(margin_k) > 1/2. A tie counts as wrong, as in `pair_metrics`.

    Args:
        log_weights: [B, K] log w_k, up to a constant per pair.
        logps, reference_logps, response_length: as `code_losses` takes them.
    """
    losses, exchanged = _both_orders(config, logps, reference_logps, response_length)
    return marginal_loss(losses, log_weights, 1.0) < marginal_loss(exchanged, log_weights, 1.0)


def label_probability(
    config: LossConfig, logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> Tensor:
    """[B, K] probability under each code that the chosen response wins: of its likelihood and the opposite label's.

    For dpo this is sigmoid(margin_k). Arguments as of `code_losses`.
    """
    losses, exchanged = _both_orders(config, logps, reference_logps, response_length)
    return torch.sigmoid(exchanged - losses).T


def _both_orders(
    config: LossConfig, logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> tuple[Tensor, Tensor]:
    """[K, B] losses of the labels, and of the opposite ones.

    Without the fluency of what was chosen: no label is likelier for the likelier text.
    """
    config = replace(config, rpo_alpha=0.0)
    exchanged_reference = None if reference_logps is None else _exchanged(reference_logps)
    return (
        code_losses(config, logps, reference_logps, response_length),
        code_losses(config, _exchanged(logps), exchanged_reference, _exchanged(response_length)),
    )


def _exchanged(values: Tensor) -> Tensor:
    """[..., 2B] with chosen and rejected exchanged."""
    return torch.cat(values.chunk(2, dim=-1)[::-1], dim=-1)
