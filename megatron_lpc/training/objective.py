"""What a micro-batch is trained for: the loss of its pairs, known to the model when it scores them, and what comes on top."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lpc_kernels import PairLoss
from torch import Tensor

from megatron_lpc.config import Config, LossConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentState, latent_loss, pair_metrics, preference_loss
from megatron_lpc.model import LatentQuery, PairScores
from megatron_lpc.training.mfu import batch_work


def training_query(config: Config, state: LatentState) -> LatentQuery:
    """The latent that training uses at a step, and the preference loss."""
    return LatentQuery(
        sources=("none" if config.latent.latent_mode == "none" else "train",),
        state=state,
        pair_loss=partial(_pair_loss, config.loss),
        algorithm=config.loss.logps_algorithm,
    )


def _pair_loss(config: LossConfig, batch: PairBatch) -> PairLoss:
    """`preference_loss` of some pairs of a micro-batch, by their log-probs under the one training latent."""

    def loss(logps: Tensor, pairs: Tensor) -> Tensor:
        responses = torch.cat([pairs, pairs + batch.num_pairs])
        reference = None if batch.reference_logps is None else batch.reference_logps[responses]
        return preference_loss(config, logps[0].flatten(), reference, batch.response_length[responses]).loss

    return loss


@dataclass(frozen=True)
class TrainingObjective:
    """Preference loss + lambda KL(q || p), summed over the pairs of a micro-batch that was scored by `training_query`."""

    config: Config
    state: LatentState

    def __call__(self, batch: PairBatch, scores: PairScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise, and the metrics of `pair_metrics` and the `work` of `mfu.batch_work`."""
        assert scores.loss is not None
        logps, latent, total = scores.logps[0].detach(), scores.latent, scores.loss
        preference = preference_loss(self.config.loss, logps, batch.reference_logps, batch.response_length)
        loss = preference.loss
        logits_q = logits_p = None
        if latent is not None and latent.kl is not None and latent.posterior_logits is not None:
            logits_q, logits_p = latent.posterior_logits, latent.prior_logits
            on_top = latent_loss(self.config.latent, self.state.kl_weight, latent.kl, logits_q)
            loss, total = loss + on_top, total + on_top.sum()
        metrics = pair_metrics(loss, preference, logps, logits_q, logits_p)
        return total, metrics | {"work": batch_work(batch, self.config.model.sliding_window)}
