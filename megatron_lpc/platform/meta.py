"""A process as one rank of a world that does not exist: tensors have shapes and no memory, collectives do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from megatron_lpc.platform.cpu import redirect_megatron_to_cpu
from megatron_lpc.platform.device import Platform
from megatron_lpc.platform.patches.patch import replace


@contextmanager
def pretended_rank(rank: int, world_size: int) -> Iterator[Platform]:
    """Within, this process is a rank of such a world, and what megatron-core puts on its GPU is on torch's meta device.

    Modules must be built within too: torch's default device is the meta device there.

    Raises:
        RuntimeError: this process has joined another world.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # It imports all of torch's test helpers.

    if dist.is_initialized():
        raise RuntimeError("a process of a running world cannot pretend to be a rank of another one")
    redirect_megatron_to_cpu()
    meta = torch.device("meta")
    current_device = torch.cuda.current_device
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    replace(torch.cuda, "current_device", lambda: meta)
    try:
        with meta:
            yield Platform(meta, "gloo")
    finally:
        replace(torch.cuda, "current_device", current_device)
        dist.destroy_process_group()
