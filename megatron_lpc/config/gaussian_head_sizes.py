"""Sizes of the head of `latent_mode: gaussian`, which follow from its options and the model's hidden size.

Shape legend: H hidden size, M hidden size of the encoder, d size of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.latent_head_sizes import POSTERIOR_INPUT_VECTORS
from megatron_lpc.config.schema import LatentConfig


@dataclass(frozen=True)
class GaussianHeadSizes:
    """An encoder from a pair to 2 d numbers, with one hidden layer, and a linear decoder from d to H."""

    hidden_size: int
    """H."""
    mlp_hidden_size: int
    """M."""
    latent_size: int
    """d."""
    pair_size: int
    """Size of what the encoder reads of a pair."""

    @property
    def encoder_inputs(self) -> dict[str, int]:
        """Matrix of the encoder, by its name in the head -> the size of what it is multiplied with."""
        return {"encoder.0": self.pair_size, "encoder.2": self.mlp_hidden_size}

    @property
    def num_matrix_elements(self) -> int:
        """Elements of the matrices that one pair is multiplied with."""
        encoder = (self.pair_size + 2 * self.latent_size) * self.mlp_hidden_size
        return encoder + self.latent_size * self.hidden_size


def gaussian_head_sizes(latent: LatentConfig, hidden_size: int) -> GaussianHeadSizes:
    """Sizes of the head of a model with this hidden size."""
    return GaussianHeadSizes(
        hidden_size=hidden_size,
        mlp_hidden_size=latent.latent_mlp_hidden_size or hidden_size,
        latent_size=latent.latent_size,
        pair_size=POSTERIOR_INPUT_VECTORS[latent.posterior_input] * hidden_size,
    )
