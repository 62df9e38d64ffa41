"""From the scores of a micro-batch to its loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron_lpc.config import Config
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentState, latent_loss, pair_metrics, preference_loss
from megatron_lpc.model import LatentQuery, PairScores
from megatron_lpc.training.mfu import batch_work


def training_query(config: Config, state: LatentState) -> LatentQuery:
    """The latent that training uses at a step."""
    return LatentQuery(sources=("none" if config.latent.latent_mode == "none" else "train",), state=state)


@dataclass(frozen=True)
class TrainingObjective:
    """Preference loss + lambda KL(q || p), summed over the pairs of a micro-batch."""

    config: Config
    state: LatentState

    def __call__(self, batch: PairBatch, scores: PairScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise, and the metrics of `pair_metrics` and the `work` of `mfu.batch_work`."""
        logps, latent = scores.logps[0], scores.latent
        preference = preference_loss(self.config.loss, logps, batch.reference_logps, batch.response_length)
        loss = preference.loss
        logits_q = logits_p = None
        if latent is not None and latent.kl is not None and latent.posterior_logits is not None:
            logits_q, logits_p = latent.posterior_logits, latent.prior_logits
            loss = loss + latent_loss(self.config.latent, self.state.kl_weight, latent.kl, logits_q)
        metrics = pair_metrics(loss, preference, logps, logits_q, logits_p)
        return loss.sum(), metrics | {"work": batch_work(batch, self.config.model.sliding_window)}
