"""A process that pretends to be one rank of a large world."""

import pytest
import torch
import torch.distributed as dist

from megatron_lpc.platform.meta import pretended_rank
from megatron_lpc.platform.process_groups import destroy_process_groups, initialize_process_groups


def test_one_of_512_ranks():
    with pretended_rank(rank=77, world_size=512) as platform:
        groups = initialize_process_groups(
            tensor_model_parallel_size=8,
            pipeline_model_parallel_size=8,
            num_virtual_stages_per_pipeline_rank=None,
            timeout_minutes=1,
        )
        assert (groups.tp.rank(), groups.dp_rank, groups.pp.rank()) == (77 % 8, 77 // 8 % 8, 77 // 64)
        assert groups.dp_size == 8
        assert torch.empty(10**12).device == torch.cuda.current_device() == platform.device == torch.device("meta")
        destroy_process_groups()


def test_nothing_is_left_behind():
    before = torch.cuda.current_device
    with pytest.raises(ZeroDivisionError), pretended_rank(rank=0, world_size=2):
        raise ZeroDivisionError
    # The first use in a process redirects megatron-core to the CPU, for good.
    assert torch.cuda.current_device is before or torch.cuda.current_device() == torch.device("cpu")
    assert not dist.is_initialized()
    assert torch.empty(1).device.type == "cpu"


def test_a_running_world_is_not_replaced():
    with (
        pretended_rank(rank=0, world_size=2),
        pytest.raises(RuntimeError, match="cannot pretend"),
        pretended_rank(rank=1, world_size=2),
    ):
        pass
