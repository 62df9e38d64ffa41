"""The process groups of a run, made once and handed to whatever communicates.

Axes of the parallel layout: TP (tensor), PP (pipeline), DP (data) and CP (context). megatron-core builds the groups
and keeps them in its module `parallel_state`; this is the only file of the project that reads it. Import it after
`select_platform`: it imports megatron-core.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection


@dataclass(frozen=True)
class ProcessGroups:
    """megatron-core's groups with the questions that this project asks about them. No property runs a collective."""

    core: ProcessGroupCollection
    """All groups, in the form that megatron-core's functions take (`pg_collection`)."""
    host: dist.ProcessGroup
    """All ranks, with gloo: for tensors on the host, when no rank shall wait for its device."""

    @property
    def tp(self) -> dist.ProcessGroup:
        """Tensor parallel ranks: each holds a shard of every weight matrix."""
        return self.core.tp

    @property
    def pp(self) -> dist.ProcessGroup:
        """Pipeline parallel ranks: each holds some of the layers, the last one also the heads."""
        return self.core.pp

    @property
    def mp(self) -> dist.ProcessGroup:
        """Model parallel ranks (TP x PP): together they hold one copy of the model and work on the same micro-batch."""
        return self.core.mp

    @property
    def dp(self) -> dist.ProcessGroup:
        """Data parallel ranks: each holds the same weights and works on other pairs."""
        return self.core.dp

    @property
    def dp_cp(self) -> dist.ProcessGroup:
        """Data and context parallel ranks: all that hold the same weights."""
        return self.core.dp_cp

    @property
    def dp_rank(self) -> int:
        """Rank within `dp`."""
        return self.dp.rank()

    @property
    def dp_size(self) -> int:
        """Number of data parallel ranks."""
        return self.dp.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the first pipeline stage (its first chunk, with interleaved stages)."""
        return self.pp.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage (its last chunk, with interleaved stages)."""
        return self.pp.rank() == self.pp.size() - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last stage of this rank's pipeline: the source of broadcasts over `pp`."""
        return dist.get_global_rank(self.pp, self.pp.size() - 1)

    @property
    def is_model_parallel_leader(self) -> bool:
        """Whether this rank is the first of its copy of the model: it writes what all ranks of a copy know."""
        return self.mp.rank() == 0


def initialize_process_groups(
    *,
    tensor_model_parallel_size: int,
    pipeline_model_parallel_size: int,
    num_virtual_stages_per_pipeline_rank: int | None,
    timeout_minutes: int,
) -> ProcessGroups:
    """Split the world, which `torch.distributed.init_process_group` has made, into the groups of one parallel layout.

    Collective over the world: every rank creates every group, in the same order.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=num_virtual_stages_per_pipeline_rank,
        distributed_timeout_minutes=timeout_minutes,
        # gloo's groups would wait for ranks that a planned world does not have.
        create_gloo_process_groups=dist.get_backend() != "fake",
    )
    if dist.get_backend() in ("gloo", "fake"):
        host = dist.group.WORLD
    else:
        host = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
    assert host is not None
    return ProcessGroups(ProcessGroupCollection.use_mpu_process_groups(), host)


def destroy_process_groups() -> None:
    """Forget the groups of this parallel layout, so that another one can be initialised. The world stays."""
    parallel_state.destroy_model_parallel()
