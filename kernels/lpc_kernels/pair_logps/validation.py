"""What `pair_logps` refuses.

Sizes are written into messages only on failure: `torch.compile` makes a constant of one that it formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from lpc_kernels.pair_logps.algorithms import Algorithm
from lpc_kernels.pair_logps.problem import PairLoss


@dataclass(frozen=True, kw_only=True)
class TensorArguments:
    """The tensors of a call as they were given, and the number of responses."""

    hidden: Tensor
    lm_head_weight: Tensor
    targets: Tensor
    segment_ids: Tensor
    num_segments: int
    z: Tensor | None
    main_grad: Tensor | None
    main_grad_only: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a call as they were given."""

    algorithm: Algorithm
    pair_loss: PairLoss | None
    vocab_start: int
    vocab_size: int | None
    chunk_size: int | None
    logit_softcap: float | None
    temperature: float


def check(tensors: TensorArguments, options: Options) -> None:
    """Raises ValueError for shapes, dtypes and options that do not fit."""
    fault = (
        _fault_of_tensors(tensors)
        or _fault_of_options(options)
        or _fault_of_algorithm(tensors, options)
        or _fault_of_main_grad(tensors)
    )
    if fault is not None:
        raise ValueError(f"pair_logps: {fault}")


def check_vocabulary(vocab_local: int, lm_head_weight: Tensor, options: Options) -> None:
    """Raises ValueError for a single rank without vocabulary."""
    if vocab_local == 0:
        raise ValueError(
            f"pair_logps: vocab_size ({options.vocab_size}) leaves no token id of the {lm_head_weight.size(0)} "
            f"from vocab_start ({options.vocab_start}) on"
        )


def _fault_of_tensors(tensors: TensorArguments) -> str | None:
    hidden, weight, z = tensors.hidden, tensors.lm_head_weight, tensors.z
    if hidden.dim() != 2:
        return f"hidden must be [N, H], got {list(hidden.shape)}"
    num_tokens, hidden_size = hidden.shape
    if weight.dim() != 2 or weight.size(1) != hidden_size:
        return f"lm_head_weight must be [V_local, {hidden_size}] as hidden's size, got {list(weight.shape)}"
    if weight.dtype != hidden.dtype:
        return f"hidden and lm_head_weight must have one dtype, got {hidden.dtype} and {weight.dtype}"
    if not hidden.is_floating_point():
        return f"hidden and lm_head_weight must be floating point, got {hidden.dtype}"
    for name, index in (("targets", tensors.targets), ("segment_ids", tensors.segment_ids)):
        if index.shape != (num_tokens,) or index.dtype != torch.int64:
            got = f"{list(index.shape)} {index.dtype}"
            return f"{name} must be [{num_tokens}] int64, one for each token of hidden, got {got}"
    if tensors.num_segments < 1:
        return f"num_segments must be at least 1, got {tensors.num_segments}"
    if z is None:
        return None
    if z.dim() not in (2, 3) or z.size(-1) != hidden_size:
        return f"z must be [P, {hidden_size}] or [L, P, {hidden_size}], got {list(z.shape)}"
    if z.size(-2) < 1 or tensors.num_segments % z.size(-2):
        return f"num_segments ({tensors.num_segments}) must be a multiple of z's {z.size(-2)} pairs"
    return None


def _fault_of_options(options: Options) -> str | None:
    if options.vocab_start < 0:
        return f"vocab_start must not be negative, got {options.vocab_start}"
    if options.vocab_size is not None and options.vocab_size < 1:
        return f"vocab_size must be at least 1, got {options.vocab_size}"
    if options.chunk_size is not None and options.chunk_size < 1:
        return f"chunk_size must be at least 1, got {options.chunk_size}"
    if options.logit_softcap is not None and options.logit_softcap <= 0:
        return f"logit_softcap must be positive, got {options.logit_softcap}"
    if options.temperature <= 0:
        return f"temperature must be positive, got {options.temperature}"
    return None


def _fault_of_algorithm(tensors: TensorArguments, options: Options) -> str | None:
    if options.algorithm not in get_args(Algorithm):
        return f"algorithm must be auto, recompute, pairwise or frozen, got {options.algorithm!r}"
    if options.algorithm == "pairwise" and options.pair_loss is None:
        return "algorithm pairwise needs pair_loss, for the gradients to be made in the forward pass"
    if options.algorithm == "frozen" and tensors.lm_head_weight.requires_grad and torch.is_grad_enabled():
        return (
            "algorithm frozen makes no gradient of lm_head_weight, which requires one; use auto, recompute or pairwise"
        )
    if options.pair_loss is None:
        return None
    num_segments, z = tensors.num_segments, tensors.z
    pairs = num_segments // 2
    shared = z is not None and z.dim() == 3 and z.size(1) == 1
    if num_segments % 2 or (z is not None and z.size(-2) != pairs and not shared):
        of_z = "" if z is None else f" and z has {z.size(-2)} pairs"
        return f"pair_loss needs two responses per pair, but num_segments is {num_segments}{of_z}"
    return None


def _fault_of_main_grad(tensors: TensorArguments) -> str | None:
    weight, main_grad = tensors.lm_head_weight, tensors.main_grad
    if main_grad is None:
        return "main_grad_only needs main_grad, where the gradient goes" if tensors.main_grad_only else None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if main_grad.shape != weight.shape or main_grad.dtype != dtype:
        return f"main_grad must be {list(weight.shape)} {dtype}, got {list(main_grad.shape)} {main_grad.dtype}"
    return None
