"""What a micro-batch is scored for, and what comes back.

Shape legend: B pairs, L latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lpc_kernels import Algorithm, PairLoss
from torch import Tensor

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.pair_hidden import PairHidden
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.latent_output import LatentOutput, LatentSource


@dataclass(frozen=True, kw_only=True)
class LatentQuery:
    """Under which latents a micro-batch is scored, and which loss of its pairs is computed at the same time."""

    sources: tuple[LatentSource, ...]
    """One latent each, `codes` K of them, in this order."""
    state: LatentState
    """Temperature and prior mix of this step."""
    make_pair_loss: Callable[[PairBatch, LatentOutput | None], PairLoss] | None = None
    """Makes the loss of a micro-batch's pairs, from what the head gives for them. A loss that is known while the logits
    are there saves computing them a second time for the gradients. None: only log-probs are wanted."""
    algorithm: Algorithm = "auto"
    """How `pair_logps` computes."""
    keeps_hidden: bool = False
    """Whether the scores come with the hidden states that they were made from."""


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What the last pipeline stage returns for B pairs."""

    logps: Tensor
    """[L, 2B] fp32 summed response log-probs, chosen first, for each requested latent."""
    latent: LatentOutput | None
    """None for the plain algorithm."""
    loss: Tensor | None = None
    """Scalar fp32: the loss that the query makes, summed over the pairs, where there is one. Gradients may then come
    only through this and not through `logps`."""
    pair_losses: Tensor | None = None
    """[B] fp32 losses of the pairs, without gradient, where the query makes a loss."""
    hidden: PairHidden | None = None
    """Where the query asks for them."""

    @property
    def device(self) -> torch.device:
        """Device of the scores.

        megatron-core's pipeline schedules treat what a stage returns as a tensor: they put a scale for the auxiliary
        losses of experts on this device.
        """
        return self.logps.device
