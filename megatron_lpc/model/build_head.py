"""The latent head of a mode."""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lpc.config import LatentConfig
from megatron_lpc.model.continuous_head import ContinuousHead
from megatron_lpc.model.latent_head import LatentHead

AnyHead = LatentHead | ContinuousHead


def build_latent_head(config: TransformerConfig, latent: LatentConfig, seed: int) -> AnyHead | None:
    """The head of the latent mode; None for the plain algorithm."""
    if latent.latent_mode == "none":
        return None
    if latent.latent_mode == "continuous":
        return ContinuousHead(config, latent)
    return LatentHead(config, latent, seed)
