"""The LPC head: prior, posterior and codebook, and the latent vectors they give (arXiv 2505.04993, section 3).

It lives on the last pipeline stage and is replicated over tensor parallel ranks. No collective runs here: its inputs
are gathered before, its noise is counter-based, and `pair_logps` all-reduces the gradient of z, so that every rank
computes the same numbers.

Shape legend: B pairs, K codes, H hidden size, L latents.
"""

from __future__ import annotations

import torch
from lpc_kernels import gumbel_mix
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_lpc.config import LatentConfig
from megatron_lpc.config.latent_head_sizes import latent_head_sizes
from megatron_lpc.losses.experts import leave_one_out
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.head_parts import mlp, new_code_unit, normalized, pair_features, stack_latents
from megatron_lpc.model.latent_output import LatentOutput, LatentSource


class LatentHead(MegatronModule):
    """Discrete codes: z is a mixture of the codebook's vectors, weighted by the prior or the posterior.

    For exact inference there is no posterior network, and no source that needs one.
    """

    def __init__(self, config: TransformerConfig, latent: LatentConfig, seed: int) -> None:
        super().__init__(config)
        self.latent = latent
        self.seed = seed
        sizes = latent_head_sizes(latent, config.hidden_size)
        self.prior = mlp(sizes.hidden_size, sizes.mlp_hidden_size, sizes.codebook_size)
        if sizes.has_posterior:
            self.posterior = mlp(sizes.posterior_input_size, sizes.mlp_hidden_size, sizes.codebook_size)
        self.codebook = nn.Parameter(torch.zeros(sizes.codebook_size, sizes.hidden_size))
        self.register_buffer("code_unit", new_code_unit())

    @property
    def codes(self) -> Tensor:
        """[K, H] what each code adds to a hidden state."""
        return self.code_unit * self.codebook

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

        With source `train` and a `posterior_context` the pairs come in episodes, and the posterior of each is the
        product of the other pairs' experts. With other sources it is the pair's own expert.

        Args:
            h_x: [B, H] hidden states at the last token of the prompt.
            h_w, h_l: [B, H] hidden states at the last token of the chosen and the rejected response.
            sample_ids: [B] int64 counters of the noise.
            state: temperature and prior mix of this step, for source `train`.
            sources: which latents to return, in this order. `train`: the relaxed sample. `prior` and `posterior`: the
                mixture by the probabilities, without noise. `mixture`: by the argument of this name. `codes`: each
                code by itself, K latents. `none`: zero.
            mixture: [B, K] fp32 mixture weights, or several as `PairBatch` has them, needed by the source of this name.
            group_ids: not read; other heads do.

        Raises:
            ValueError: source `mixture` is requested and there are no mixture weights; a source is requested that needs
                a posterior network, and there is none.
        """
        prior_logits = self.prior(normalized(h_x)).float()
        codes = self.codes
        experts = swapped = posterior_logits = mix = None
        if self.latent.latent_inference == "amortized":
            posterior_logits = experts = self.posterior(pair_features(self.latent, h_w, h_l)).float()
            if "train" in sources and self.latent.swap_guidance_weight > 0:
                swapped = self.posterior(pair_features(self.latent, h_l, h_w)).float()
            if "train" in sources and self.latent.posterior_context:
                posterior_logits = leave_one_out(experts, self.latent.posterior_context + 1)
            mix = gumbel_mix(
                posterior_logits,
                prior_logits,
                codes,
                sample_ids,
                seed=self.seed,
                tau=state.tau,
                prior_mix=state.prior_mix,
                straight_through=self.latent.relaxation == "straight_through",
            )

        def mixed(weights: Tensor) -> Tensor:
            """[B, H] of mixture weights [B, K], or several."""
            return weights.to(codes.dtype) @ codes

        def latents_from(source: LatentSource) -> Tensor:
            """[B, H], or several."""
            if source == "codes":
                # All pairs share them: without a copy for each, `pair_logps` needs no [K, B, V].
                return codes[:, None]
            if source == "none":
                return torch.zeros_like(h_x[:1], dtype=codes.dtype)
            if source == "prior":
                return mixed(prior_logits.softmax(-1))
            if source == "mixture":
                if mixture is None:
                    raise ValueError("latent source `mixture` needs PairBatch.mixture")
                return mixed(mixture)
            if mix is None or posterior_logits is None:
                raise ValueError(f"latent source `{source}` needs a posterior network; exact inference has none")
            return mix.z if source == "train" else mixed(posterior_logits.softmax(-1))

        return LatentOutput(
            z=stack_latents([latents_from(source) for source in sources]),
            posterior_logits=posterior_logits,
            prior_logits=prior_logits,
            kl=None if mix is None else mix.kl,
            own_logits=experts,
            swapped_logits=swapped,
        )
