"""The scores of a whole data set: everything that an evaluation measures is read from this table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from megatron_lpc.config import LossConfig
from megatron_lpc.losses import finish_metrics, implicit_rewards, pair_metrics, preference_loss


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """What a model says of P pairs under L latents; fp64 on the CPU, in the order of `example_index`."""

    example_index: Tensor
    """[P] int64 place of each pair in its data set, ascending."""
    logps: Tensor
    """[P, L, 2] summed log-probs of chosen and rejected, nats."""
    code_logps: Tensor
    """[P, K, 2] the same under each code by itself, where the codes were scored; else [P, 0, 2].

    16 K bytes per pair: 100 MB for 64 codes and 100,000 pairs."""
    reference_logps: Tensor
    """[P, 2] the same under the reference; NaN where there is none."""
    response_length: Tensor
    """[P, 2] response tokens."""
    posterior_logits: Tensor
    """[P, K] of the posterior network, or of the exact posterior where inference is exact and the codes were scored;
    else [P, 0]."""
    prior_logits: Tensor
    """[P, K]; K = 0 where there are no codes."""
    latent_mean: Tensor
    """[P, d] mean of each pair's own Gaussian posterior; d = 0 in other modes."""

    def __len__(self) -> int:
        return len(self.example_index)

    @property
    def num_codes(self) -> int:
        """K."""
        return self.prior_logits.size(1)

    def select(self, pairs: Tensor) -> PairTable:
        """The table of some of its pairs, given by a mask [P] or by indices."""
        return PairTable(**{field.name: getattr(self, field.name)[pairs] for field in fields(self)})

    @classmethod
    def joined(cls, tables: Sequence[PairTable]) -> PairTable:
        """The pairs of several tables, one table after the other; `example_index` counts on through all of them."""
        names = [field.name for field in fields(cls)]
        whole = cls(**{name: torch.cat([getattr(table, name) for table in tables]) for name in names})
        return replace(whole, example_index=torch.arange(len(whole)))


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The log-probs of a table as `losses` takes them, chosen responses of all pairs first."""

    logps: Tensor
    """[2P], or [L, 2P] under several latents, such as every code."""
    reference_logps: Tensor
    """[2P]."""
    response_length: Tensor
    """[2P]."""

    @classmethod
    def under_latent(cls, table: PairTable, latent: int) -> Responses:
        """Under the `latent`-th latent."""
        return cls._of(table, table.logps[:, latent].T.reshape(-1))

    @classmethod
    def under_latents(cls, table: PairTable) -> Responses:
        """Under each latent of axis L."""
        return cls._of(table, table.logps.permute(1, 2, 0).flatten(1))

    @classmethod
    def under_codes(cls, table: PairTable) -> Responses:
        """Under every code."""
        return cls._of(table, table.code_logps.permute(1, 2, 0).flatten(1))

    @classmethod
    def _of(cls, table: PairTable, logps: Tensor) -> Responses:
        return cls(
            logps=logps,
            reference_logps=table.reference_logps.T.reshape(-1),
            response_length=table.response_length.T.reshape(-1),
        )


def table_metrics(loss: LossConfig, table: PairTable, latent: int) -> dict[str, float]:
    """The metrics of training over all pairs of a table, under its `latent`-th latent.

    `loss` among them is only the preference loss, without the terms of the latent.

    Raises:
        ValueError: the table holds no pair.
    """
    of = Responses.under_latent(table, latent)
    losses = preference_loss(loss, of.logps, of.reference_logps, of.response_length)
    rewards = implicit_rewards(loss, of.logps, of.reference_logps, of.response_length)
    if table.num_codes == 0:
        return finish_metrics(pair_metrics(losses, rewards, of.logps))
    sums = pair_metrics(losses, rewards, of.logps, table.posterior_logits, table.prior_logits)
    return finish_metrics(sums)


def is_correct(loss: LossConfig, table: PairTable, latent: int) -> Tensor:
    """[P] bool: pairs whose chosen response has the greater reward under the `latent`-th latent."""
    responses = Responses.under_latent(table, latent)
    rewards = implicit_rewards(loss, responses.logps, responses.reference_logps, responses.response_length)
    return rewards.chosen > rewards.rejected
