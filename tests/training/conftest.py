from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from frozen_runs import UNFROZEN, config_of

from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed


@pytest.fixture(scope="module")
def context(tiny_run) -> Iterator[RunContext]:
    """This process as a world of one, for the runs of a module."""
    yield start_distributed(config_of(tiny_run, *UNFROZEN))
    if dist.is_initialized():
        stop_distributed()
