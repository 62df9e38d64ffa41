"""Fresh weights that do not depend on the parallel layout.

megatron-core draws weights in the order in which a rank builds its modules, so another parallel layout is another
model. Here each weight matrix has a generator of its own, seeded by the run's seed and the matrix's name in the
checkpoint. It draws the whole matrix, of which each rank keeps its shard.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from megatron_lpc.config import LatentConfig, ModelConfig

_LAST_OF_RESIDUAL_BRANCH = ("linear_proj.weight", "linear_fc2.weight")
_GIVES_LATENT = ("latent_head.codebook", "latent_head.network.2.weight")
"""The codes, and the last layer of the continuous control, which starts as the codes do."""


@torch.no_grad()
def initialize_parameters(chunk: Any, model: ModelConfig, latent: LatentConfig, seed: int) -> None:
    """Draw every matrix of one model chunk from a normal distribution.

    Norm weights stay 1, biases of the head become 0. The standard deviation is `init_method_std`; that of the last
    projection of a residual branch is divided by sqrt(2 num_layers) as in Megatron-LM; that of the codes is
    `codebook_init_std`. Memory: one whole matrix at a time, on the host.
    """
    for tensor in sharded_tensors(chunk.sharded_state_dict()):
        if tensor.key.startswith("latent_head.") and tensor.key.endswith(".bias"):
            tensor.data.zero_()
        is_matrix = isinstance(tensor.data, Tensor) and len(_matrix_shape(tensor)) >= 2
        if is_matrix:
            _draw(tensor, _standard_deviation(tensor.key, model, latent), seed)


def _standard_deviation(key: str, model: ModelConfig, latent: LatentConfig) -> float:
    if key in _GIVES_LATENT:
        return latent.codebook_init_std
    if key.endswith(_LAST_OF_RESIDUAL_BRANCH):
        return model.init_method_std / math.sqrt(2 * model.num_layers)
    return model.init_method_std


def sharded_tensors(state: dict[str, Any]) -> list[ShardedTensor]:
    """Leaves of a sharded state dict; fused matrices (gate and up projection) as their parts."""
    leaves: list[ShardedTensor] = []
    for value in state.values():
        parts = value.build() if isinstance(value, ShardedTensorFactory) else value
        if isinstance(parts, dict):
            leaves += sharded_tensors(parts)
            continue
        if not isinstance(parts, list):
            parts = [parts]
        leaves += [part for part in parts if isinstance(part, ShardedTensor)]
    return leaves


def _matrix_shape(tensor: ShardedTensor) -> tuple[int, ...]:
    """Global shape of one layer's matrix, without the axis along which a checkpoint stacks layers."""
    return tensor.global_shape[tensor.prepend_axis_num :]


def _draw(tensor: ShardedTensor, std: float, seed: int) -> None:
    """Fill this rank's shard of the whole matrix that `tensor` belongs to."""
    num_stacked_axes = tensor.prepend_axis_num
    layer, offset = tensor.global_offset[:num_stacked_axes], tensor.global_offset[num_stacked_axes:]
    name = f"{seed}/{tensor.key}/{layer}"
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    whole = torch.randn(_matrix_shape(tensor), generator=generator, dtype=torch.float32).mul_(std)
    shard = tuple(slice(start, start + size) for start, size in zip(offset, tensor.local_shape, strict=True))
    tensor.data.copy_(whole[shard].view(tensor.data.shape))
