"""Sizes of the LPC head's networks, which follow from its options and the model's hidden size.

Shape legend: H hidden size, M hidden size of the head's MLPs, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.schema import LatentConfig

POSTERIOR_INPUT_VECTORS = {"concat": 2, "difference": 1, "bilinear": 3}
"""Vectors of size H that the posterior network reads, by `posterior_input`."""


@dataclass(frozen=True)
class LatentHeadSizes:
    """Sizes of the head, and of the control that has as many parameters."""

    hidden_size: int
    """H."""
    mlp_hidden_size: int
    """M, of the prior and of the posterior network."""
    codebook_size: int
    """K."""
    posterior_input_size: int
    """Size of what the posterior network reads; 0 where there is no such network."""

    @property
    def has_posterior(self) -> bool:
        """Whether there is a posterior network; exact inference needs none."""
        return self.posterior_input_size > 0

    @property
    def num_parameters(self) -> int:
        """Parameters of prior, posterior and codebook, biases included."""
        prior = self._mlp_parameters(self.hidden_size)
        posterior = self._mlp_parameters(self.posterior_input_size) if self.has_posterior else 0
        return prior + posterior + self.codebook_size * self.hidden_size

    @property
    def num_matrix_elements(self) -> int:
        """Elements of the matrices that one pair is multiplied with.

        `num_parameters` without the biases, and for exact inference without the codebook, whose codes are added as
        they are.
        """
        prior = (self.hidden_size + self.codebook_size) * self.mlp_hidden_size
        if not self.has_posterior:
            return prior
        return prior + self.num_posterior_elements + self.codebook_size * self.hidden_size

    @property
    def num_posterior_elements(self) -> int:
        """Elements of the posterior network's matrices."""
        return (self.posterior_input_size + self.codebook_size) * self.mlp_hidden_size if self.has_posterior else 0

    @property
    def matrix_inputs(self) -> dict[str, int]:
        """Matrix of prior and posterior, by its name in the head -> the size of what it is multiplied with."""
        prior = {"prior.0": self.hidden_size, "prior.2": self.mlp_hidden_size}
        posterior = {"posterior.0": self.posterior_input_size, "posterior.2": self.mlp_hidden_size}
        return prior | posterior if self.has_posterior else prior

    @property
    def control_mlp_hidden_size(self) -> int:
        """Hidden size C of the continuous control, an MLP from H to H of about `num_parameters` parameters.

        It has (H + 1) C + (C + 1) H = (2 H + 1) C + H parameters.
        """
        per_unit = 2 * self.hidden_size + 1
        return max(1, round((self.num_parameters - self.hidden_size) / per_unit))

    def _mlp_parameters(self, input_size: int) -> int:
        """Parameters of an MLP to K logits."""
        return (input_size + 1) * self.mlp_hidden_size + (self.mlp_hidden_size + 1) * self.codebook_size


def latent_head_sizes(latent: LatentConfig, hidden_size: int) -> LatentHeadSizes:
    """Sizes of the head of a model with this hidden size."""
    vectors = 0 if latent.latent_inference == "exact" else POSTERIOR_INPUT_VECTORS[latent.posterior_input]
    return LatentHeadSizes(
        hidden_size=hidden_size,
        mlp_hidden_size=latent.latent_mlp_hidden_size or hidden_size,
        codebook_size=latent.codebook_size,
        posterior_input_size=vectors * hidden_size,
    )
