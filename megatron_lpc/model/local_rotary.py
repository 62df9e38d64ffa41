"""Another rotary base in layers with a sliding window, as Gemma 3 has it.

Core hands one table of angles to all layers. Here it holds two, and each layer takes its own: one tensor, so that it
passes through activation recomputation like the one table.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor


def both_angles(everywhere: Tensor, in_windows: Tensor) -> Tensor:
    """[2, S, R or 1, 1, D] of two tables [S, R or 1, 1, D]."""
    return torch.stack((everywhere, in_windows))


class LocalRotaryAttention(SelfAttention):
    """Self-attention that takes its table out of `both_angles`."""

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `SelfAttention`."""
        in_window = is_layer_window_attention(
            self.config.window_size, self.config.window_attn_skip_freq, self.layer_number
        )
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb[int(in_window)], **kwargs)
