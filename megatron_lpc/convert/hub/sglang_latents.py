"""The latent of each request, for SGLang:

    LPC_EXPORT=EXPORT PYTHONPATH=EXPORT python -m sglang.launch_server --model-path EXPORT \\
        --enable-custom-logit-processor

A request names the processor in its field `custom_logit_processor` and the latent in `custom_params`; `request.py`
makes both, and refuses a malformed latent before it is sent. SGLang calls the processor with the logits of the requests
that name it, once per step.
"""

from __future__ import annotations

import json
import logging
from functools import cache, lru_cache
from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor

from .latent_table import REQUEST_KEY, table_of_environment

_logger = logging.getLogger(__name__)


class LatentLogits(CustomLogitProcessor):
    """Adds p (C W^T) to the logits of every request that asks for a latent."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any] | None] | None = None) -> Tensor:
        """logits: [R, V'], V' at least V; R is the number of requests, or a multiple under speculative decoding."""
        if not custom_param_list:
            return logits
        values = _values_on(logits.device)
        weights = torch.stack([_weights_of(params, len(values)) for params in custom_param_list])
        added = (weights.to(values) @ values).repeat_interleave(len(logits) // len(weights), dim=0)
        logits[:, : added.size(1)] += added.to(logits.dtype)
        return logits


def _weights_of(params: dict[str, Any] | None, count: int) -> Tensor:
    """[K] mixture weights, 0 without a latent."""
    wanted = (params or {}).get(REQUEST_KEY)
    return torch.zeros(count) if wanted is None else _parsed(json.dumps(wanted), count)


@lru_cache(maxsize=4096)  # A request asks for the same at each of its steps.
def _parsed(wanted: str, count: int) -> Tensor:
    try:
        weights = table_of_environment().weights_of({REQUEST_KEY: json.loads(wanted)})
    except ValueError as error:
        # SGLang has no admission for it, and an error here would end the server.
        _logger.error("%s; the request is answered without a latent", error)
        weights = None
    return torch.zeros(count) if weights is None else weights


@cache
def _values_on(device: torch.device) -> Tensor:
    """[K, V] the table."""
    return table_of_environment().values.to(device)
