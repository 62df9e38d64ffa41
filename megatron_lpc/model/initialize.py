"""Fresh weights that do not depend on the parallel layout.

megatron-core draws weights in the order in which a rank builds its modules, so another layout is another model. Here each weight matrix is
drawn from a generator seeded by the run's seed and the matrix's name in the checkpoint, as a whole, and each rank keeps its part.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from megatron_lpc.config import LatentConfig, ModelConfig


@torch.no_grad()
def initialize_parameters(chunk: Any, model: ModelConfig, latent: LatentConfig, seed: int) -> None:
    """Draw every matrix of one model chunk: normal, `init_method_std`; the residual branches' last projections divided by sqrt(2 layers)
    as Megatron-LM does; codes by `codebook_init_std`. Norm weights stay 1, biases 0.

    The cost is one full matrix in host memory at a time.
    """
    latent_output = "latent_head.network.2.weight"  # The continuous control starts as the codes do.
    for tensor in sharded_tensors(chunk.sharded_state_dict()):
        if tensor.key.startswith("latent_head.") and tensor.key.endswith(".bias"):
            tensor.data.zero_()
        if not isinstance(tensor.data, Tensor) or len(_matrix_shape(tensor)) < 2:
            continue
        std = model.init_method_std
        if tensor.key.endswith(("linear_proj.weight", "linear_fc2.weight")):
            std /= math.sqrt(2 * model.num_layers)
        if tensor.key in ("latent_head.codebook", latent_output):
            std = latent.codebook_init_std
        _draw(tensor, std, seed)


def sharded_tensors(state: dict[str, Any]) -> list[ShardedTensor]:
    """Leaves of a sharded state dict; fused matrices (gate and up) as their parts."""
    leaves: list[ShardedTensor] = []
    for value in state.values():
        parts = value.build() if isinstance(value, ShardedTensorFactory) else value
        if isinstance(parts, dict):
            leaves += sharded_tensors(parts)
        else:
            leaves += [p for p in (parts if isinstance(parts, list) else [parts]) if isinstance(p, ShardedTensor)]
    return leaves


def _matrix_shape(tensor: ShardedTensor) -> tuple[int, ...]:
    """Global shape of one layer's matrix, without the axis along which a checkpoint stacks layers."""
    return tensor.global_shape[tensor.prepend_axis_num :]


def _draw(tensor: ShardedTensor, std: float, seed: int) -> None:
    """Fill this rank's part of the whole matrix `tensor` belongs to."""
    stacked, offset = tensor.prepend_axis_num, tensor.global_offset
    name = f"{seed}/{tensor.key}/{offset[:stacked]}"
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
    )
    whole = torch.randn(_matrix_shape(tensor), generator=generator, dtype=torch.float32).mul_(std)
    window = tuple(slice(start, start + size) for start, size in zip(offset[stacked:], tensor.local_shape, strict=True))
    tensor.data.copy_(whole[window].view(tensor.data.shape))
