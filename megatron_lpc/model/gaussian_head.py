"""A Gaussian latent that an encoder reads off labelled pairs of an annotator (VPL, arXiv 2408.10075).

VPL pools the pairs of its context by self-attention and a mean; here by a mean alone (deep sets, arXiv 1703.06114), of
what the encoder gives for each pair, so that a support set of any size has the posterior that training would give it.
VPL conditions a reward model on z; here z is decoded and added where every latent is added.

Shape legend: B pairs, M other pairs of an episode, d size of the latent, H hidden size.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_lpc.config import LatentConfig
from megatron_lpc.config.gaussian_head_sizes import gaussian_head_sizes
from megatron_lpc.losses import gaussian_kl
from megatron_lpc.losses.experts import leave_one_out
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.counter_noise import normal_noise
from megatron_lpc.model.head_parts import mlp, new_code_unit, pair_features, stack_latents
from megatron_lpc.model.latent_output import LatentOutput, LatentSource


class GaussianHead(MegatronModule):
    """q(z) = N(mean, exp(log variance)) of the pairs of an annotator, p(z) = N(0, I), and a linear decoder."""

    def __init__(self, config: TransformerConfig, latent: LatentConfig, seed: int) -> None:
        super().__init__(config)
        self.latent = latent
        self.seed = seed
        sizes = gaussian_head_sizes(latent, config.hidden_size)
        self.encoder = mlp(sizes.pair_size, sizes.mlp_hidden_size, 2 * sizes.latent_size)
        self.decoder = nn.Linear(sizes.latent_size, sizes.hidden_size)
        self.register_buffer("code_unit", new_code_unit())

    def forward(
        self,
        h_x: Tensor,
        h_w: Tensor,
        h_l: Tensor,
        sample_ids: Tensor,
        state: LatentState,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None,
        group_ids: Tensor | None = None,
    ) -> LatentOutput:
        """Latents of B pairs.

        With source `train` and a `posterior_context` the pairs come in episodes, and the posterior of each is that of
        the other pairs. With other sources it is the pair's own.

        Args:
            h_x, state, group_ids: not read; other heads do.
            h_w, h_l: [B, H] hidden states at the last token of the chosen and the rejected response.
            sample_ids: [B] int64 counters of the noise.
            sources: which latents to return, in this order. `train`: a sample of the posterior. `posterior` and
                `prior`: their means. `mixture`: the argument of this name, decoded. `none`: zero.
            mixture: [B, d] a latent for each pair, or several as `PairBatch` has them, needed by the source of this
                name.

        Raises:
            ValueError: a source is requested that the mode does not have, or without its argument.
        """
        of_pairs = self.encoder(pair_features(self.latent, h_w, h_l)).float()
        context = self.latent.posterior_context
        if "train" in sources and context:
            of_pairs = leave_one_out(of_pairs, context + 1) / context
        mean, log_variance = of_pairs.chunk(2, dim=-1)

        def latent_from(source: LatentSource) -> Tensor:
            """[B, d] fp32, or several."""
            if source == "train":
                noise = normal_noise(sample_ids, mean.size(-1), self.seed)
                return mean + (log_variance / 2).exp() * noise
            if source == "posterior":
                return mean
            if source == "prior":
                return torch.zeros_like(mean)
            if source != "mixture":
                raise ValueError(f"latent mode `gaussian` has no {source} latent")
            if mixture is None:
                raise ValueError("latent source `mixture` needs PairBatch.mixture")
            return mixture

        def decoded(source: LatentSource) -> Tensor:
            """[B, H], or several."""
            if source == "none":
                return torch.zeros_like(h_w[:1], dtype=self.decoder.weight.dtype)
            return self.code_unit * self.decoder(latent_from(source).to(self.decoder.weight.dtype))

        return LatentOutput(
            z=stack_latents([decoded(source) for source in sources]),
            mean=mean,
            kl=gaussian_kl(mean, log_variance),
        )
