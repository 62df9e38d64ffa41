"""What each labelled pair says of the codes, and how several pairs are pooled.

Shape legend: P pairs, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from megatron_lpc.config import Config
from megatron_lpc.evaluation.marginal import log_likelihoods
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.support import pooled_posterior

PosteriorName = Literal["support", "support_exact"]
"""As the accuracies under it are named in a report."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Logits of the codes from each of P pairs."""

    logits: Tensor
    """[P, K] fp64."""
    product: bool
    """Whether pairs are pooled as a product of experts (their logits add), else by the mean of their posteriors."""

    @property
    def weights(self) -> Tensor:
        """[K] mixture weights from all pairs."""
        return pooled_posterior(self.logits, self.product)

    @classmethod
    def of_support(cls, config: Config, table: PairTable) -> Evidence:
        """As the model was trained: the mean of the pairs' posteriors, or with a `posterior_context` their product.

        Args:
            table: scored under the codes.
        """
        product = config.latent.posterior_context > 0
        # The prior is no factor of a product of experts: `losses.experts`.
        if product and config.latent.latent_inference == "exact":
            return cls.exact(config, table)
        return cls(logits=table.posterior_logits, product=product)

    @classmethod
    def exact(cls, config: Config, table: PairTable) -> Evidence:
        """The exact posterior under a uniform prior: log-likelihoods of the labels add. Argument as of `of_support`."""
        return cls(logits=log_likelihoods(config.loss, table), product=True)

    @classmethod
    def of(cls, posterior: PosteriorName, config: Config, table: PairTable) -> Evidence:
        """By the name of the posterior."""
        return cls.exact(config, table) if posterior == "support_exact" else cls.of_support(config, table)
