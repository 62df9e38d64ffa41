"""The latent of each request, for vLLM's V1 engine:

    LPC_EXPORT=EXPORT PYTHONPATH=EXPORT vllm serve EXPORT --logprobs-mode processed_logprobs \\
        --logits-processors lpc_serving.vllm_v1:LatentLogits

The engine tells of requests that enter, leave and move in its batch (`update_state`), and then hands over the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from .latent_table import table_of_environment

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class LatentLogits(LogitsProcessor):
    """Adds p (C W^T) to the logits of every request that asks for a latent."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a malformed latent at admission. Raises ValueError, with the reason."""
        table_of_environment().weights_of(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._table = table_of_environment()
        self._values = self._table.values.to(device)
        self._weights: dict[int, Tensor] = {}
        """Row of the batch -> [K], of the requests with a latent."""
        self._added: tuple[Tensor, Tensor] | None = None
        """Rows [R], and what is added to their logits [R, V]; None until it is made."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """In the order that vLLM asks for: removed, added, moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._weights.pop(row, None)
        for row, params, *_ in batch_update.added:
            self._put(row, self._table.weights_of(params.extra_args))
        for source, target, direction in batch_update.moved:
            moved, replaced = self._weights.pop(source, None), self._weights.pop(target, None)
            self._put(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._put(source, replaced)
        self._added = None

    def _put(self, row: int, weights: Tensor | None) -> None:
        if weights is None:
            self._weights.pop(row, None)
        else:
            self._weights[row] = weights

    def apply(self, logits: Tensor) -> Tensor:
        """logits: [B, V'], V' at least V: a server may pad the vocabulary."""
        if not self._weights:
            return logits
        if self._added is None:
            rows = sorted(self._weights)
            weights = torch.stack([self._weights[row] for row in rows]).to(self._values)
            self._added = torch.tensor(rows, device=logits.device), weights @ self._values
        rows_of, added = self._added
        logits[rows_of, : added.size(1)] += added.to(logits.dtype)
        return logits
