"""The LPC head: prior, posterior and codebook, and the latent vectors they give (arXiv 2505.04993, section 3).

It lives on the last pipeline stage and is replicated over tensor parallel ranks. Its inputs are gathered, its noise is counter-based and
`pair_logps` all-reduces the gradient of z, so every rank computes the same numbers and no collective is needed here.
Shape legend: B pairs, K codes, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lpc_kernels import gumbel_mix
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_lpc.config import LatentConfig
from megatron_lpc.losses.schedules import LatentState

LatentSource = Literal["train", "prior", "posterior", "mixture", "none"]


@dataclass(frozen=True, kw_only=True)
class LatentOutput:
    """What the head says of B pairs. All but z are None for the continuous control."""

    z: Tensor
    """[L, B, H] one latent per requested source."""
    posterior_logits: Tensor | None = None
    """[B, K] fp32."""
    prior_logits: Tensor | None = None
    """[B, K] fp32."""
    kl: Tensor | None = None
    """[B] fp32 KL(q || p) in nats."""


class LatentHead(MegatronModule):
    """Discrete codes: z is a mixture of codebook rows, weighted by the prior or the posterior."""

    def __init__(self, config: TransformerConfig, latent: LatentConfig, seed: int) -> None:
        super().__init__(config)
        self.latent, self.seed = latent, seed
        hidden = config.hidden_size
        width = latent.latent_mlp_hidden_size or hidden
        self.prior = _mlp(hidden, width, latent.codebook_size)
        self.posterior = _mlp(_POSTERIOR_WIDTH[latent.posterior_input] * hidden, width, latent.codebook_size)
        self.codebook = nn.Parameter(torch.zeros(latent.codebook_size, hidden))

    def forward(
        self,
        h_x: Tensor,
        h_w: Tensor,
        h_l: Tensor,
        sample_ids: Tensor,
        state: LatentState,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None,
    ) -> LatentOutput:
        """Latents of B pairs.

        Args:
            h_x, h_w, h_l: [B, H] hidden states at the last token of prompt, chosen and rejected.
            sample_ids: [B] int64 counters of the noise.
            state: temperature and prior mix of this step (for source `train`).
            sources: which latents to return, in this order. `train`: the relaxed sample; `prior` and `posterior`: mixture by the
                probabilities, without noise; `mixture`: by `mixture`; `none`: zero.
            mixture: [B, K] fp32, needed by that source.
        """
        logits_p = self.prior(h_x).float()
        logits_q = self.posterior(_POSTERIOR_INPUT[self.latent.posterior_input](h_w, h_l)).float()
        mix = gumbel_mix(
            logits_q,
            logits_p,
            self.codebook,
            sample_ids,
            seed=self.seed,
            tau=state.tau,
            prior_mix=state.prior_mix,
            straight_through=self.latent.relaxation == "straight_through",
        )

        def latent_from(source: LatentSource) -> Tensor:
            if source == "train":
                return mix.z
            if source == "none":
                return torch.zeros_like(mix.z)
            weights = {"prior": logits_p.softmax(-1), "posterior": logits_q.softmax(-1), "mixture": mixture}[source]
            if weights is None:
                raise ValueError("latent source `mixture` needs PairBatch.mixture")
            return weights.to(self.codebook.dtype) @ self.codebook

        z = torch.stack([latent_from(source) for source in sources])
        return LatentOutput(z=z, posterior_logits=logits_q, prior_logits=logits_p, kl=mix.kl)


class ContinuousHead(MegatronModule):
    """Control with the parameters of a `LatentHead` and none of its ideas: an MLP of the prompt gives z. No codes, no noise, no KL."""

    def __init__(self, config: TransformerConfig, latent: LatentConfig) -> None:
        super().__init__(config)
        hidden, width, codes = (
            config.hidden_size,
            latent.latent_mlp_hidden_size or config.hidden_size,
            latent.codebook_size,
        )
        posterior = _POSTERIOR_WIDTH[latent.posterior_input] * hidden
        parameters = (hidden + 1) * width + (posterior + 1) * width + 2 * (width + 1) * codes + codes * hidden
        self.network = _mlp(hidden, max(1, round((parameters - hidden) / (2 * hidden + 1))), hidden)

    def forward(
        self,
        h_x: Tensor,
        h_w: Tensor,
        h_l: Tensor,
        sample_ids: Tensor,
        state: LatentState,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None,
    ) -> LatentOutput:
        """The same latent for `train` and `prior`; zero for `none`. Takes what `LatentHead` takes, and reads the prompt alone.

        Raises:
            ValueError: another source is asked for.
        """
        if unknown := set(sources) - {"train", "prior", "none"}:
            raise ValueError(f"latent mode `continuous` has no {', '.join(sorted(unknown))} latent")
        z = self.network(h_x)
        return LatentOutput(z=torch.stack([torch.zeros_like(z) if s == "none" else z for s in sources]))


def build_latent_head(config: TransformerConfig, latent: LatentConfig, seed: int) -> LatentHead | ContinuousHead | None:
    """The head of the latent mode; None for the plain algorithm."""
    if latent.latent_mode == "none":
        return None
    return LatentHead(config, latent, seed) if latent.latent_mode == "lpc" else ContinuousHead(config, latent)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


_POSTERIOR_WIDTH = {"concat": 2, "difference": 1, "bilinear": 3}
_POSTERIOR_INPUT = {
    "concat": lambda chosen, rejected: torch.cat([chosen, rejected], dim=-1),
    "difference": lambda chosen, rejected: chosen - rejected,
    "bilinear": lambda chosen, rejected: torch.cat([chosen, rejected, chosen * rejected], dim=-1),
}
