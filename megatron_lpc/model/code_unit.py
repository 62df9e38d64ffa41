"""The unit of the codes: the size of the hidden states that they are added to."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def set_code_unit(model: Any) -> None:
    """Give a new LPC head its unit, once the backbone has the weights that training starts with.

    The final norm gives hidden states whose root mean square is about that of its own weights. With that as unit, codes
    of standard deviation s, and the steps of their learning rate, are the same fraction of the hidden states in every
    model. The unit stays as it is while the norm is trained, and is part of the checkpoint; a head that came with one
    keeps its own.

    Args:
        model: a `PreferenceModel`; only that of the last pipeline stage has a head.
    """
    head = getattr(model, "latent_head", None)
    if head is None or not head.code_unit.isnan():
        return
    weight = model.decoder.final_layernorm.weight.double()
    if model.config.layernorm_zero_centered_gamma:
        weight = 1 + weight
    head.code_unit.copy_(weight.square().mean().sqrt())
