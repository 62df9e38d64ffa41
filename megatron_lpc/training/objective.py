"""The loss of a micro-batch: that of its pairs, which the model computes while scoring, and the latent terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lpc_kernels import PairLoss
from torch import Tensor

from megatron_lpc.config import Config, LossConfig, layer_windows
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import (
    LatentState,
    implicit_rewards,
    latent_loss,
    pair_metrics,
    preference_loss,
    swap_divergence,
    uses_reference,
)
from megatron_lpc.model import LatentOutput, LatentQuery, LatentSource, PairScores
from megatron_lpc.training.exact_objective import exact_loss, make_marginal_pair_loss
from megatron_lpc.training.mfu import batch_work


def training_query(config: Config, state: LatentState) -> LatentQuery:
    """The latents that training uses at a step, and the preference loss.

    With a frozen backbone the reference is one more latent, z = 0, and comes last.
    """
    make_pair_loss = partial(make_preference_pair_loss, config.loss)
    algorithm = config.loss.logps_algorithm
    sources: tuple[LatentSource, ...] = ("none" if config.latent.latent_mode == "none" else "train",)
    if config.latent.latent_inference == "exact":
        make_pair_loss = partial(make_marginal_pair_loss, config)
        sources = ("codes",)
        if config.latent.posterior_context:
            algorithm = "recompute"  # The loss of an episode needs all its pairs at once.
    if config.training.freeze_backbone and uses_reference(config.loss):
        sources = (*sources, "none")
    return LatentQuery(
        sources=sources,
        state=state,
        make_pair_loss=make_pair_loss,
        algorithm=algorithm,
    )


def make_preference_pair_loss(config: LossConfig, batch: PairBatch, latent: LatentOutput | None) -> PairLoss:
    """`preference_loss` of some pairs of a micro-batch, by their log-probs under the one training latent; where there
    is a second latent, it is the reference.
    """

    def loss(logps: Tensor, pairs: Tensor) -> Tensor:
        responses = torch.cat([pairs, pairs + batch.num_pairs])
        reference = None if batch.reference_logps is None else batch.reference_logps[responses]
        if len(logps) > 1:
            reference = logps[-1].detach().flatten()
        return preference_loss(config, logps[0].flatten(), reference, batch.response_length[responses])

    return loss


@dataclass(frozen=True)
class TrainingLoss:
    """Preference loss + lambda KL(q || p), summed over the pairs of a micro-batch scored by `training_query`.

    Under exact inference the marginal over codes instead: `exact_loss`.
    """

    config: Config
    state: LatentState

    def __call__(self, batch: PairBatch, scores: PairScores) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise, and the metrics of `pair_metrics` and the `work` of `mfu.batch_work`; with swap guidance
        also `lpc/swap_divergence`, in nats."""
        work = batch_work(batch, layer_windows(self.config.model))
        if self.config.latent.latent_inference == "exact":
            total, metrics = exact_loss(self.config, batch, scores)
            return total, metrics | {"work": work}
        assert scores.loss is not None
        assert scores.pair_losses is not None
        logps = scores.logps[0].detach()
        latent = scores.latent
        total = scores.loss
        losses = scores.pair_losses
        reference = batch.reference_logps if len(scores.logps) == 1 else scores.logps[-1].detach()
        rewards = implicit_rewards(self.config.loss, logps, reference, batch.response_length)
        posterior_logits = prior_logits = None
        extra: dict[str, Tensor] = {}
        if latent is not None and latent.kl is not None:
            posterior_logits = latent.posterior_logits
            prior_logits = latent.prior_logits
            latent_terms = latent_loss(self.config.latent, self.state.kl_weight, latent.kl, posterior_logits)
            if latent.swapped_logits is not None and latent.own_logits is not None:
                divergence = swap_divergence(latent.own_logits, latent.swapped_logits)
                latent_terms = latent_terms + self.config.latent.swap_guidance_weight * divergence
                extra["lpc/swap_divergence"] = divergence.detach().double().sum()
            if posterior_logits is None:  # A Gaussian; codes give their KL through the logits.
                extra["lpc/kl"] = latent.kl.detach().double().sum()
            losses = losses + latent_terms
            total = total + latent_terms.sum()
        metrics = pair_metrics(losses, rewards, logps, posterior_logits, prior_logits)
        return total, metrics | extra | {"work": work}
