"""The scores of a whole data set: everything that an evaluation measures is read from this table."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    reference_logps: Tensor
    """[P, 2] the same under the reference; NaN where there is none."""
    response_length: Tensor
    """[P, 2] response tokens."""
    posterior_logits: Tensor
    """[P, K]; K = 0 where there are no codes."""
    prior_logits: Tensor
    """[P, K]."""

    def __len__(self) -> int:
        return len(self.example_index)

    @property
    def num_codes(self) -> int:
        """K."""
        return self.posterior_logits.size(1)

    def select(self, pairs: Tensor) -> PairTable:
        """The table of some of its pairs, given by a mask [P] or by indices."""
        return PairTable(**{field.name: getattr(self, field.name)[pairs] for field in fields(self)})


def table_metrics(loss: LossConfig, table: PairTable, latent: int) -> dict[str, float]:
    """The metrics of training over all pairs of a table, under its `latent`-th latent.

    `loss` among them is only the preference loss, without the terms of the latent.

    Raises:
        ValueError: the table holds no pair.
    """
    logps = table.logps[:, latent].T.reshape(-1)
    reference_logps = table.reference_logps.T.reshape(-1)
    response_length = table.response_length.T.reshape(-1)
    losses = preference_loss(loss, logps, reference_logps, response_length)
    rewards = implicit_rewards(loss, logps, reference_logps, response_length)
    if table.num_codes == 0:
        return finish_metrics(pair_metrics(losses, rewards, logps))
    sums = pair_metrics(losses, rewards, logps, table.posterior_logits, table.prior_logits)
    return finish_metrics(sums)
