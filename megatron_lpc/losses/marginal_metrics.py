"""The metrics of pairs under the marginal over codes.

Shape legend: B pairs, K codes.
"""

from __future__ import annotations

from torch import Tensor

from megatron_lpc.config.schema import LossConfig
from megatron_lpc.losses.exact import prefers_chosen
from megatron_lpc.losses.metrics import pair_metrics
from megatron_lpc.losses.preference import implicit_rewards


def marginal_metrics(
    config: LossConfig,
    loss: Tensor,
    logps: Tensor,
    reference_logps: Tensor | None,
    response_length: Tensor,
    prior_logits: Tensor,
    posterior_logits: Tensor,
) -> dict[str, Tensor]:
    """The sums of `pair_metrics`, where a code is drawn from the prior.

    `rewards/accuracies` counts the pairs whose label the mixture of codes, weighted by the prior, finds likelier than
    the opposite one (`prefers_chosen`). The other rewards and the log-probs are means over codes by the prior.

    Args:
        loss: [B] what is minimised.
        logps, reference_logps, response_length: as `code_losses` takes them.
        prior_logits, posterior_logits: [B, K].
    """
    log_prior = prior_logits.detach().log_softmax(dim=-1)
    weights = log_prior.exp().T.repeat(1, 2)
    mean_logps = (weights * logps).sum(dim=0)
    rewards = implicit_rewards(config, mean_logps, reference_logps, response_length)
    correct = prefers_chosen(config, log_prior, logps, reference_logps, response_length)
    sums = pair_metrics(loss, rewards, mean_logps, posterior_logits, prior_logits)
    return sums | {"rewards/accuracies": correct.double().sum()}
