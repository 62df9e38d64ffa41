"""The latent of each request, for vLLM's V1 engine:

    LPC_EXPORT=EXPORT PYTHONPATH=EXPORT vllm serve EXPORT --logprobs-mode processed_logprobs \\
        --logits-processors lpc_serving.vllm_v1:LatentLogits

The engine tells of requests that enter, leave and move in its batch (`update_state`), and then hands over the logits.

The prior reads the hidden state at the last token of the prompt, behind the logits that the first token of the response
is sampled from. Until a request has a token, each of its rows is taken for that one, and the last of them is it: rows
before, of the parts of a long prompt, give tokens that vLLM throws away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from .latent_table import REQUEST_KEY, table_of_environment
from .vllm_model import check_served, is_registered, sampled_hidden_states

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_KEPT = "lpc_inferred_weights"
"""Attribute of the parameters of a request, which the worker keeps while the request is out of the batch.

A request that is preempted comes back with its tokens as part of what is read, and no row of its prompt's end."""


@dataclass
class _Request:
    params: SamplingParams
    tokens: list[int]
    """Of the response; vLLM appends to it."""
    latent: Tensor | str
    """[K] fp32 mixture weights, or one of `PRIOR_LATENTS`."""
    weights: Tensor | None
    """[K] fp32; None until the prior has read the prompt."""


class LatentLogits(LogitsProcessor):
    """Adds p (C W^T) to the logits of every request that asks for a latent."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a malformed latent at admission. Raises ValueError, with the reason."""
        latent = table_of_environment().latent_of(sampling_params.extra_args)
        if isinstance(latent, str) and not is_registered():
            raise ValueError(f"{REQUEST_KEY}: {latent} needs the plugin `lpc_serving`, which VLLM_PLUGINS leaves out")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._table = table_of_environment()
        if is_registered():
            check_served(vllm_config)
        self._values = self._table.values.to(device)
        self._requests: dict[int, _Request] = {}
        """Row of the batch -> its request, of the requests with a latent."""
        self._added: tuple[Tensor, Tensor] | None = None
        """Rows [R], and what is added to their logits [R, V]; None until it is made."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """In the order that vLLM asks for: removed, added, moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, _, tokens in batch_update.added:
            self._put(row, self._request(params, tokens))
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            self._put(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._put(source, replaced)
        self._added = None

    def _request(self, params: SamplingParams, tokens: list[int]) -> _Request | None:
        latent = self._table.latent_of(params.extra_args)
        if latent is None:
            return None
        weights = getattr(params, _KEPT, None) if isinstance(latent, str) else latent
        return _Request(params, tokens, latent, weights)

    def _put(self, row: int, request: _Request | None) -> None:
        if request is None:
            self._requests.pop(row, None)
        else:
            self._requests[row] = request

    def apply(self, logits: Tensor) -> Tensor:
        """logits: [B, V'], V' at least V: a server may pad the vocabulary."""
        if not self._requests:
            return logits
        self._infer(len(logits))
        if self._added is None:
            rows = sorted(self._requests)
            weights = torch.stack([self._weights(row) for row in rows])
            self._added = torch.tensor(rows, device=logits.device), weights @ self._values
        rows_of, added = self._added
        logits[rows_of, : added.size(1)] += added.to(logits.dtype)
        return logits

    def _infer(self, batch_size: int) -> None:
        """Let the prior read the rows of requests that have no token yet."""
        unread = {row: each.latent for row, each in self._requests.items() if not each.tokens}
        latents = {row: latent for row, latent in unread.items() if isinstance(latent, str)}
        if not latents:
            return
        h_x = sampled_hidden_states(batch_size)[list(latents)]
        for row, weights in zip(latents, self._table.inferred(list(latents.values()), h_x), strict=True):
            self._requests[row].weights = weights
            setattr(self._requests[row].params, _KEPT, weights)
        self._added = None

    def _weights(self, row: int) -> Tensor:
        weights = self._requests[row].weights
        if weights is None:
            raise RuntimeError(f"{REQUEST_KEY}: a request has tokens of which this server has not read the prompt")
        return weights.to(self._values)
