"""Writes the tensors of a checkpoint without a copy of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from torch.distributed import checkpoint


class OneTensorAtATime(torch_dist.TorchDistSaveShardedStrategy):
    """megatron-core's strategy, but a synchronous save has one tensor on the host at a time.

    megatron-core 0.16 saves synchronously as it does asynchronously: it copies everything that the rank writes to the
    host before it writes (on a CPU: every view of a larger storage), and forks. torch's own writer copies a tensor when
    it is that tensor's turn. The format is the same. An asynchronous save is megatron-core's: it needs the copy.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Write what this rank is the main replica of.

        Collectives: torch gathers the plans of all ranks on rank 0 of the world, scatters the checked plan, and gathers
        what was written. They hold names and places of tensors, no data.

        Memory: on the host, a copy of the largest tensor at most; on the device nothing.
        """
        tensors, _, _ = torch_dist._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        # One thread, and no copying ahead of it: each thread has a tensor of its own in hand.
        writer = _PlainIndexWriter(str(checkpoint_dir), thread_count=1, per_thread_copy_ahead=0)
        checkpoint.save(
            torch_dist.mcore_to_pyt_state_dict(tensors, False),
            storage_writer=writer,
            planner=torch_dist.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


class _PlainIndexWriter(checkpoint.FileSystemWriter):
    """Leaves the folder's path out of the index, where `read_tensor_index` allows no paths: the folder is renamed."""

    def storage_meta(self) -> None:
        return None
