"""The norm of all gradients without TransformerEngine and Apex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace


@patch(*MEGATRON_CORE, symptom="The gradient norm waits for the device once for each parameter.")
def compute_gradient_norm_on_device() -> None:
    """Let megatron-core's own gradient norm stay on the device until all gradients are in it.

    It makes a tensor of a list of norms, each of which the host reads. TransformerEngine's and Apex's norms, which
    megatron-core uses where they are installed, are left alone.
    """
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        replace(clip_grads, "l2_norm_impl", _l2_norm)


def _l2_norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool, *args: Any
) -> tuple[Tensor, None]:
    """Norm [1] of all tensors of the first list, with the arguments of Apex's `multi_tensor_l2norm`.

    On a CPU equal to megatron-core's to the bit.
    """
    return torch.nn.utils.get_total_norm(tensor_lists[0]).view(1), None
