"""Rotary position embedding. Only the fused form is here: megatron-core has its own for the other."""

from __future__ import annotations

import torch
from torch import Tensor

from transformer_engine.checked import checked


@checked
def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    start_positions: Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> Tensor:
    assert fused
    assert not interleaved
    assert start_positions is None
    assert cp_size == 1
    assert freqs.dtype == torch.float32
    assert freqs.dim() == 4
    assert freqs.shape[1:3] == (1, 1)
    if tensor_format == "sbhd":
        assert t.dim() == 4
        assert cu_seqlens is None
        assert freqs.size(0) >= t.size(0)
        angles = freqs[: t.size(0)]
    else:
        assert tensor_format == "thd"
        assert t.dim() == 3
        assert cu_seqlens.dtype == torch.int32
        assert cu_seqlens.dim() == 1
        assert cu_seqlens[-1] == t.size(0)
        lengths = cu_seqlens.diff().tolist()
        assert max(lengths) <= freqs.size(0), "the kernel would read past the end of the angles"
        angles = torch.cat([freqs[:length, 0] for length in lengths])
    rotated, rest = t.split([freqs.size(-1), t.size(-1) - freqs.size(-1)], dim=-1)
    one, other = rotated.chunk(2, dim=-1)
    cosine, sine = angles.cos().to(t.dtype), angles.sin().to(t.dtype)
    return torch.cat((rotated * cosine + torch.cat((-other, one), dim=-1) * sine, rest), dim=-1)


def apply_fused_qkv_rotary_pos_emb(
    qkv: Tensor,
    q_freqs: Tensor,
    k_freqs: Tensor,
    qkv_split_arg_list: list[int],
    tensor_format: str = "sbhd",
    start_positions: Tensor | None = None,
    interleaved: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> None:
    raise NotImplementedError("megatron-core calls it under `fused_single_qkv_rope` only")
