"""Fresh weights that do not depend on the parallel layout.

megatron-core draws weights in the order in which a rank builds its modules, so another parallel layout is another
model. Here a weight is a function of the run's seed, of its matrix's name in the checkpoint, and of its place in the
matrix; a rank draws its shard only. megatron-core itself draws nothing (see `transformer_config`), so what is not
drawn here holds whatever was in memory until a checkpoint is loaded.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor
from itertools import product
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from megatron_lpc.config import LatentConfig, ModelConfig
from megatron_lpc.model.normal_tiles import drawing_threads, normal_shard

FreshWeights = Literal["all", "latent_head", "none"]
"""Which weights are drawn: a checkpoint gives the others."""
_LAST_OF_RESIDUAL_BRANCH = ("linear_proj.weight", "linear_fc2.weight")
_HEAD = "latent_head."


@torch.no_grad()
def initialize_parameters(
    chunk: Any, model: ModelConfig, latent: LatentConfig, seed: int, fresh: FreshWeights = "all"
) -> None:
    """Draw every matrix of one model chunk from a normal distribution, or those of the LPC head only.

    Biases become 0; norm weights keep the 1 (or 0) that the norms themselves set. The standard deviation is
    `init_method_std`; that of the last projection of a residual branch is divided by sqrt(2 num_layers) as in
    Megatron-LM. For the LPC head see `_head_standard_deviation`. Memory: one shard at a time in fp32, on the host.
    """
    if fresh == "none":
        return
    with drawing_threads() as threads:
        for tensor in sharded_tensors(chunk.sharded_state_dict()):
            if fresh == "latent_head" and not tensor.key.startswith(_HEAD):
                continue
            if tensor.key.endswith(".bias"):
                tensor.data.zero_()
            elif isinstance(tensor.data, Tensor) and len(_matrix_shape(tensor)) >= 2:
                shard = _draw(tensor, seed, threads)
                tensor.data.copy_(shard.mul_(_standard_deviation(tensor, model, latent)))


def _standard_deviation(tensor: ShardedTensor, model: ModelConfig, latent: LatentConfig) -> float:
    key = tensor.key
    if key.startswith(_HEAD):
        return _head_standard_deviation(key, tensor.global_shape[-1], latent)
    if key.endswith(_LAST_OF_RESIDUAL_BRANCH):
        return model.init_method_std / math.sqrt(2 * model.num_layers)
    return model.init_method_std


def _head_standard_deviation(key: str, num_inputs: int, latent: LatentConfig) -> float:
    """For matrices of the LPC head.

    Codes are in units of the hidden states. First layers read normalized vectors and give numbers of about 1 in any
    width. Last layers of prior, posterior and encoder are 0: before the first step every code is as probable as any
    other, and a Gaussian posterior is its prior.
    """
    if key == "latent_head.codebook":
        return latent.codebook_init_std
    if key == "latent_head.network.2.weight":  # The control's, which starts as the codes do.
        return latent.codebook_init_std / math.sqrt(num_inputs)
    if key == "latent_head.decoder.weight":  # Of a Gaussian latent, whose numbers have a variance of about 1.
        return latent.codebook_init_std / math.sqrt(num_inputs)
    return 1 / math.sqrt(num_inputs) if key.endswith(".0.weight") else 0.0


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


def _draw(tensor: ShardedTensor, seed: int, threads: Executor) -> Tensor:
    """Standard normal numbers of this rank's shard of the matrix that `tensor` belongs to, in the shape of its data."""
    num_stacked_axes = tensor.prepend_axis_num
    layer, offset = tensor.global_offset[:num_stacked_axes], tensor.global_offset[num_stacked_axes:]
    *outer, rows, columns = (range(start, start + size) for start, size in zip(offset, tensor.local_shape, strict=True))
    num_columns = tensor.global_shape[-1]
    matrices = [
        normal_shard(f"{seed}/{tensor.key}/{(*layer, *place)}", num_columns, rows, columns, threads)
        for place in product(*outer)
    ]
    return torch.stack(matrices).view(tensor.data.shape)
