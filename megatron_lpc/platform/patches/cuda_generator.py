"""The CUDA generator whose state megatron-core keeps and restores."""

from __future__ import annotations

import torch

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace


@patch(*MEGATRON_CORE, symptom="Seeding megatron-core's random state tracker fails on a machine without a GPU.")
def redirect_cuda_generator() -> None:
    """Let torch's CPU generator stand for the one of the current CUDA device.

    megatron-core uses it in `tensor_parallel.random`: for the tracker of model parallel generators and for activation
    recomputation.
    """
    from megatron.core.tensor_parallel import random as megatron_random

    replace(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    replace(torch.cuda, "set_rng_state", lambda state, device=None: torch.set_rng_state(state))
    replace(torch.cuda, "manual_seed", torch.default_generator.manual_seed)
    replace(
        megatron_random,
        "_get_cuda_rng_state",
        lambda device=None, clone=False, graph_safe=False: torch.get_rng_state(),
    )
    replace(
        megatron_random,
        "_set_cuda_rng_state",
        lambda state, device=None, graph_safe=False: torch.set_rng_state(state),
    )
