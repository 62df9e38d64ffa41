"""Each rank writes what its process groups say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_lpc.platform import select_platform


def main(folder: Path) -> None:
    platform = select_platform("cpu")
    dist.init_process_group(platform.backend)

    from megatron.core import parallel_state

    from megatron_lpc.platform.process_groups import destroy_process_groups, initialize_process_groups

    groups = initialize_process_groups(
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=2,
        num_virtual_stages_per_pipeline_rank=None,
        timeout_minutes=5,
    )
    answers = {
        "is_first_stage": groups.is_first_stage,
        "is_last_stage": groups.is_last_stage,
        "last_stage_rank": groups.last_stage_rank,
        "dp_rank": groups.dp_rank,
        "dp_size": groups.dp_size,
        "is_model_parallel_leader": groups.is_model_parallel_leader,
        "same_objects_as_core": groups.tp is parallel_state.get_tensor_model_parallel_group()
        and groups.dp_cp is parallel_state.get_data_parallel_group(with_context_parallel=True)
        and groups.last_stage_rank == parallel_state.get_pipeline_model_parallel_last_rank(),
    }
    destroy_process_groups()
    answers["destroyed"] = not parallel_state.model_parallel_is_initialized()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
