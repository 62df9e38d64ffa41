"""RMSNorm that works under sequence parallelism, and where layers have one beside that on their input."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked `sequence_parallel`.

    Under sequence parallelism each tensor parallel rank applies the weight to its own shard of the sequence, so the
    weight's gradient must be summed over the ranks. The mark makes megatron-core's `finalize_model_grads` all-reduce it
    over the tensor parallel group. megatron-core's own wrapper of torch's norm refuses sequence parallelism.

    Under `layernorm_zero_centered_gamma`, y = normed(x) * (1 + w), in fp32 as Gemma does it: in bf16, 1 + w would lose
    most of w.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        self.zero_centered = config.layernorm_zero_centered_gamma
        if self.zero_centered:
            torch.nn.init.zeros_(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x, in x's dtype."""
        if not self.zero_centered:
            return super().forward(x)
        return rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).type_as(x)


class NormedRowParallelLinear(RowParallelLinear):
    """The last projection of attention or MLP, with an RMSNorm on its output: before the residual is added.

    In checkpoints the norm is `post_layernorm`, as in Megatron-Bridge.
    """

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_layernorm = RMSNorm(config, output_size, config.layernorm_epsilon)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `RowParallelLinear`, normalised."""
        output, bias = super().forward(input_)
        return self.post_layernorm(output), bias


class ProjectionRMSNorm(nn.Module):
    """RMSNorm of queries or keys over the channels of all heads, of which each tensor parallel rank holds some.

    y = x / rms(x) * w, computed in fp32. The weight is sharded as the heads are. Padded heads are 0 and do not count.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        heads: int,
        padded_heads: int,
        tp_group: dist.ProcessGroup,
    ) -> None:
        """Called by megatron-core's `SelfAttention`.

        Args:
            hidden_size: channels D of one head.
            heads: heads of all ranks.
            padded_heads: how many of them, the last ones, are padding.
            tp_group: the tensor parallel ranks.
        """
        super().__init__()
        self.eps = eps
        self.tp_group = tp_group
        self.channels = (heads - padded_heads) * hidden_size
        self.weight = nn.Parameter(torch.ones(heads // tp_group.size() * hidden_size))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[S, R, h, D] -> [S, R, h, D] in x's dtype.

        Collectives on the tensor parallel group: an all-reduce of one number per token, forward and backward.
        """
        flat = x.flatten(2).float()
        squares = flat.square().sum(dim=-1, keepdim=True)
        # Every rank's heads depend on the sum of all ranks, so its gradient is summed over them too.
        total = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(squares, group=self.tp_group), group=self.tp_group
        )
        normed = flat * torch.rsqrt(total / self.channels + self.eps) * self.weight.float()
        return normed.view(x.shape).type_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The weight as megatron-core's checkpoints take it."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=None if metadata is None else metadata["dp_cp_group"],
        )
