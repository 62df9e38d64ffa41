"""The latent head of a mode."""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_lpc.config import LatentConfig
from megatron_lpc.model.continuous_head import ContinuousHead
from megatron_lpc.model.embedding_head import EmbeddingHead
from megatron_lpc.model.gaussian_head import GaussianHead
from megatron_lpc.model.latent_head import LatentHead

AnyHead = LatentHead | ContinuousHead | EmbeddingHead | GaussianHead


def build_latent_head(config: TransformerConfig, latent: LatentConfig, seed: int) -> AnyHead | None:
    """The head of the latent mode; None for the plain algorithm."""
    if latent.latent_mode == "none":
        return None
    if latent.latent_mode == "continuous":
        return ContinuousHead(config, latent)
    if latent.latent_mode == "embedding":
        return EmbeddingHead(config, latent, seed)
    if latent.latent_mode == "gaussian":
        return GaussianHead(config, latent, seed)
    return LatentHead(config, latent, seed)
