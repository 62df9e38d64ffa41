"""A norm and the linear layer after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformer_engine.checked import checked
from transformer_engine.pytorch.module.linear import Linear
from transformer_engine.pytorch.module.norm import rms_norm
from transformer_engine.pytorch.quantization import dist_group_type


class LayerNormLinear(Linear):
    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: dist_group_type | None = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        normalization: str = "LayerNorm",
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        parameters_split: tuple[str, ...] | dict[str, int] | None = None,
        zero_centered_gamma: bool = False,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        name: str = None,
    ) -> None:
        assert normalization == "RMSNorm", "this project's models have no LayerNorm"
        assert not return_layernorm_output
        super().__init__(
            in_features,
            out_features,
            sequence_parallel=sequence_parallel,
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
            tp_group=tp_group,
            tp_size=tp_size,
            get_rng_state_tracker=get_rng_state_tracker,
            init_method=init_method,
            bias=bias,
            return_bias=return_bias,
            params_dtype=params_dtype,
            parallel_mode=parallel_mode,
            device=device,
        )
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        gamma = torch.full((in_features,), float(not zero_centered_gamma), dtype=params_dtype, device=device)
        self.layer_norm_weight = nn.Parameter(gamma)
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel

    @checked
    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        self.prepare_forward(inp, self.weight.dtype)
        normed = rms_norm(inp, self.layer_norm_weight, self.eps, self.zero_centered_gamma)
        return self.multiply(normed, is_first_microbatch)
