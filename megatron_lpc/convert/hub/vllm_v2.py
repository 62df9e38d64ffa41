"""The latent of each request, for vLLM's V2 model runner, the default on GPUs:

    LPC_EXPORT=EXPORT PYTHONPATH=EXPORT vllm serve EXPORT --logprobs-mode processed_logprobs \\
        --logits-processors lpc_serving.vllm_v2:LatentLogits

The runner gives each request a slot, in which its weights are kept on the device. A preempted request loses its slot,
and with it what the prior has inferred: such latents are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from .latent_table import REQUEST_KEY, table_of_environment

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState


class LatentLogits(LogitsProcessor):
    """Adds p (C W^T) to the logits of every request that asks for a latent."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a malformed latent at admission. Raises ValueError, with the reason."""
        _fixed(table_of_environment().latent_of(sampling_params.extra_args))

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._table = table_of_environment()
        self._values = self._table.values.to(req_states.device)
        self._weights = torch.zeros(req_states.max_num_reqs, len(self._values), device=req_states.device)
        """[slots, K]; 0 where a request has no latent."""
        self._staged: dict[int, Tensor] = {}
        self._with_latent: set[int] = set()
        """Slots whose weights are not 0."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        weights = _fixed(self._table.latent_of(sampling_params.extra_args))
        if weights is None and req_idx not in self._with_latent:
            return False
        self._staged[req_idx] = torch.zeros(len(self._values)) if weights is None else weights
        if weights is None:
            self._with_latent.discard(req_idx)
            return False
        self._with_latent.add(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        for slot, weights in self._staged.items():
            self._weights[slot] = weights.to(self._weights.device)
        self._staged.clear()

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """logits: [B, V'], V' at least V: a server may pad the vocabulary."""
        if self._with_latent.isdisjoint(ctx.idx_mapping_np.tolist()):
            return logits
        logits[:, : self._values.size(1)] += self._weights[ctx.expanded_idx_mapping] @ self._values
        return logits


def _fixed(latent: Tensor | str | None) -> Tensor | None:
    """Weights that are known from the start. Raises ValueError for those that the prior infers."""
    if isinstance(latent, str):
        raise ValueError(
            f"{REQUEST_KEY}: {latent} needs vLLM's V1 model runner: start the server with VLLM_USE_V2_MODEL_RUNNER=0 "
            "and lpc_serving.vllm_v1:LatentLogits"
        )
    return latent
