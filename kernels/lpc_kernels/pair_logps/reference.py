"""`pair_logps` by its definition: all logits at once, and autograd.

What the other files must agree with; for tests, not for use.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pair_logps_reference(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    segment_ids: Tensor,
    num_segments: int,
    z: Tensor | None = None,
    *,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probs summed over each response, [S] or [L, S], and those of the loss tokens, [N] or [L, N].

    Arguments as of `pair_logps`, with the whole LM head without padding. Differentiable in hidden, lm_head_weight and
    z, in their dtype.
    """
    if z is not None:
        num_pairs = z.size(-2)
        hidden = hidden + z[..., segment_ids % num_pairs, :]
    logits = hidden @ lm_head_weight.T
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    log_probs = (logits / temperature).log_softmax(-1)
    token_logps = log_probs[..., torch.arange(len(targets)), targets]
    sums = [token_logps[..., segment_ids == segment].sum(-1) for segment in range(num_segments)]
    return torch.stack(sums, dim=-1), token_logps
