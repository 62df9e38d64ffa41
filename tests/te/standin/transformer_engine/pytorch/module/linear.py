"""Linear layers with their communication over tensor parallel ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from transformer_engine.checked import checked
from transformer_engine.common.recipe import Float8BlockScaling, MXFP8BlockScaling
from transformer_engine.pytorch.module.base import TransformerEngineBaseModule, get_dummy_wgrad
from transformer_engine.pytorch.quantization import dist_group_type, rounded

_BLOCK = {Float8BlockScaling: 128, MXFP8BlockScaling: 32}
"""Values per scale; an all-gather of quantized values needs whole blocks."""


class Linear(TransformerEngineBaseModule):
    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: dist_group_type | None = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: tuple[str, ...] | dict[str, int] | None = None,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__()
        assert parallel_mode in ("column", "row", None)
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        self.set_tensor_parallel_group(tp_group)
        self.parallel_mode = parallel_mode
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.save_original_input = save_original_input
        self.use_bias, self.return_bias = bias, return_bias
        self.out_features = out_features // (self.tp_size if parallel_mode == "column" else 1)
        self.in_features = in_features // (self.tp_size if parallel_mode == "row" else 1)
        self._fp8_weight = None
        fork = get_rng_state_tracker().fork(*filter(None, [rng_tracker_name])) if get_rng_state_tracker else None
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, dtype=params_dtype, device=device))
        with fork or nullcontext(), torch.no_grad():
            init_method(self.weight)
        _mark_shard(self.weight, 1 if parallel_mode == "row" else 0)
        self.bias = torch.empty(0, dtype=params_dtype, device=device)
        if bias:
            del self.bias
            self.bias = nn.Parameter(torch.zeros(self.out_features, dtype=params_dtype, device=device))
            if parallel_mode == "column":
                _mark_shard(self.bias, 0)

    @checked
    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        self.prepare_forward(inp, self.weight.dtype)
        return self.multiply(inp, is_first_microbatch)

    def multiply(self, inp: Tensor, is_first_microbatch: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        from megatron.core.tensor_parallel import mappings

        if self.recipe is not None:
            self._check_fp8_sizes(inp)
        options = {"group": self.tp_group}
        if self.parallel_mode == "column" and self.sequence_parallel:
            inp = mappings.gather_from_sequence_parallel_region(inp, **options)
        elif self.parallel_mode == "column":
            inp = mappings.copy_to_tensor_model_parallel_region(inp, **options)
        out = _Product.apply(inp, self.weight, self, is_first_microbatch)
        if self.parallel_mode == "row" and self.sequence_parallel:
            out = mappings.reduce_scatter_to_sequence_parallel_region(out, **options)
        elif self.parallel_mode == "row":
            out = mappings.reduce_from_tensor_model_parallel_region(out, **options)
        if self.return_bias:
            return out, self.bias
        return out + self.bias if self.use_bias else out

    def _check_fp8_sizes(self, inp: Tensor) -> None:
        for tensor in (inp, self.weight):
            assert math.prod(tensor.shape[:-1]) % 8 == 0 and tensor.shape[-1] % 16 == 0, "FP8 sizes"
        if self.parallel_mode == "column" and self.sequence_parallel:
            block = _BLOCK.get(type(self.recipe), 1)
            assert math.prod(inp.shape[:-1]) % block == 0 and inp.shape[-1] % block == 0, "no whole blocks to gather"

    def weight_of_forward(self, is_first_microbatch: bool | None) -> Tensor:
        """The weight as it is multiplied: in FP8 made once per step, where the module is told which pass is first."""
        if self.recipe is None:
            return self.weight
        if self._fp8_weight is None or is_first_microbatch is None or is_first_microbatch:
            self._fp8_weight = rounded(self.weight.detach(), self.recipe.fp8_format.value.forward)
        return self._fp8_weight


class _Product(torch.autograd.Function):
    """inp @ weight.T, in FP8 where the module has a recipe."""

    @staticmethod
    def forward(ctx, inp, weight, module, is_first_microbatch):
        recipe = module.recipe
        used_weight = module.weight_of_forward(is_first_microbatch)
        used = inp if recipe is None else rounded(inp, recipe.fp8_format.value.forward)
        ctx.save_for_backward(used, weight, used_weight)
        ctx.recipe, ctx.module, ctx.is_first_microbatch = recipe, module, is_first_microbatch
        return used @ used_weight.t()

    @staticmethod
    def backward(ctx, grad):
        inp, weight, used_weight = ctx.saved_tensors
        if ctx.recipe is not None:
            grad = rounded(grad, ctx.recipe.fp8_format.value.backward)
        grad_weight = grad.flatten(0, -2).t() @ inp.flatten(0, -2)
        if ctx.module.fuse_wgrad_accumulation:
            grad_weight = _add_to_main_grad(weight, grad_weight, overwrite=bool(ctx.is_first_microbatch))
        return grad @ used_weight, grad_weight, None, None


def _add_to_main_grad(weight: Tensor, grad: Tensor, overwrite: bool) -> Tensor:
    """What is left for autograd."""
    if overwrite:
        weight.main_grad.copy_(grad)
    else:
        weight.main_grad.add_(grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return get_dummy_wgrad(list(weight.shape), grad.dtype, zero=getattr(weight, "zero_out_wgrad", False))


def _mark_shard(parameter: Tensor, dim: int) -> None:
    parameter.tensor_model_parallel = True
    parameter.partition_dim = dim
    parameter.partition_stride = 1


class GroupedLinear(TransformerEngineBaseModule):
    """megatron-core derives classes from it; this project's experts are sequential."""
