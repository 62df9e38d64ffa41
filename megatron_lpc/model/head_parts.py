"""Parts that the latent heads share.

Shape legend: B pairs, H hidden size, L latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from megatron_lpc.config import LatentConfig

_NORM_EPSILON = 1e-6


def new_code_unit() -> Tensor:
    """[1] fp32, not a number until `set_code_unit` or a checkpoint gives it its value."""
    return torch.full((1,), torch.nan)


def normalized(hidden: Tensor) -> Tensor:
    """Hidden states [B, H], or differences of them, with a root mean square of 1; zero stays zero."""
    return rms_norm(hidden, hidden.shape[-1:], eps=_NORM_EPSILON)


def pair_features(latent: LatentConfig, h_w: Tensor, h_l: Tensor) -> Tensor:
    """What a posterior network reads of B pairs: [B, vectors * H], the vectors those of `POSTERIOR_INPUT_VECTORS`.

    Args:
        latent: whose `posterior_input` says what.
        h_w, h_l: [B, H] hidden states at the last token of the chosen and the rejected response.
    """
    if latent.posterior_input == "difference":
        # What the responses share is most of a hidden state, and the same for both labels of a pair.
        return normalized(h_w - h_l)
    h_w, h_l = normalized(h_w), normalized(h_l)
    if latent.posterior_input == "concat":
        return torch.cat([h_w, h_l], dim=-1)
    return torch.cat([h_w, h_l, h_w * h_l], dim=-1)


def stack_latents(latents: Sequence[Tensor]) -> Tensor:
    """[L, B, H] all latents in their order; [L, 1, H] where each of them is the same for all pairs.

    Args:
        latents: one [B, H] or several [W, B, H]; B is 1 in those that are the same for all pairs.
    """
    several = [z if z.dim() == 3 else z[None] for z in latents]
    rows = max(z.size(1) for z in several)
    return torch.cat([z.expand(-1, rows, -1) for z in several])


def mlp(input_size: int, hidden_size: int, output_size: int) -> nn.Sequential:
    """A network with one hidden layer."""
    return nn.Sequential(
        nn.Linear(input_size, hidden_size),
        nn.GELU(),
        nn.Linear(hidden_size, output_size),
    )
