"""Writes what building and saving a checkpoint adds to each rank at its highest.

    torchrun --nproc-per-node 2 save_memory_worker.py FOLDER

FOLDER/RANK.json has, in bytes: `added`; `largest`, the fp32 state of the largest parameter; `owned`, all fp32 state of
this rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from checkpoint_worker import TRAIN_ITERS, join
from layout_cases import layout_config

from megatron_lpc.config import Config, with_options
from megatron_lpc.platform.process_groups import destroy_process_groups
from megatron_lpc.training.checkpoint import Checkpoints
from megatron_lpc.training.checkpoint_tensors import sharded_weights
from megatron_lpc.training.optimizer_state import sharded_optimizer_state
from megatron_lpc.training.policy import build_policy, make_trainable
from megatron_lpc.training.state import RunState

LARGE = {"num_layers": 16, "hidden_size": 256, "ffn_hidden_size": 1024, "vocab_size": 4096}


def config_of(folder: Path, **changes: object) -> Config:
    config = layout_config("dp2_distributed_optimizer", "simpo-lpc-tied")
    return with_options(config, **{"save": str(folder), "bf16": True} | changes)


def resident(field: str) -> int:
    """Bytes; VmHWM is the peak of VmRSS."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def save(config: Config) -> dict[str, int]:
    context = join(config)
    policy = make_trainable(context, build_policy(context), TRAIN_ITERS)
    state = sharded_optimizer_state(policy.optimizer, sharded_weights(policy.chunks))
    pieces = [tensor.data for kinds in state.values() for tensors in kinds.values() for tensor in tensors]
    for piece in pieces:
        piece.fill_(1.0)  # Memory that was never written is not resident.
    checkpoints = Checkpoints(context, policy)
    Path("/proc/self/clear_refs").write_text("5")  # Sets VmHWM back to VmRSS.
    before = resident("VmRSS")
    checkpoints.save(RunState(train_iters=TRAIN_ITERS))
    added = resident("VmHWM") - before
    checkpoints.finish()
    destroy_process_groups()
    largest = max(parameter.numel() for chunk in policy.chunks for parameter in chunk.parameters())
    return {"added": added, "largest": 12 * largest, "owned": sum(piece.nbytes for piece in pieces)}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    save(config_of(folder / "small"))  # What is loaded and allocated the first time does not count.
    measured = save(config_of(folder / "large", **LARGE))
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
