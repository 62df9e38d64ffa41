"""Logits of imported checkpoints in parallel layouts of two processes.

    torchrun --nproc-per-node 2 logits_worker.py FOLDER LAYOUT…

For every FOLDER/NAME/megatron, the last rank writes FOLDER/NAME/logits-LAYOUT.pt: a list of [1, S, V].
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from models import prompts

from megatron_lpc.config import ParallelConfig
from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.logits import logits_config, logits_of
from megatron_lpc.model import build_model
from megatron_lpc.training.checkpoint_tensors import load_weights
from megatron_lpc.training.setup import split_world, start_distributed

LAYOUTS = {"tp2": {"tensor_model_parallel_size": 2}, "pp2": {"pipeline_model_parallel_size": 2}}


def main() -> None:
    from megatron_lpc.platform.process_groups import destroy_process_groups

    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    context = None
    for layout in sys.argv[2:]:
        for checkpoint in sorted(folder.glob("*/megatron")):
            model, bf16 = describe_megatron(checkpoint).stored_model, checkpoint.parent.name.endswith("bf16")
            config = logits_config(model, bf16=bf16, parallel=ParallelConfig(device="cpu", **LAYOUTS[layout]))
            if context is None:
                context = start_distributed(config)
            elif context.groups.pp.size() != config.parallel.pipeline_model_parallel_size:
                destroy_process_groups()
                context = split_world(config, context.platform)
            chunks = build_model(config, context.platform, context.groups, config.latent, fresh="none")
            load_weights(chunks, checkpoint, groups=context.groups, latent_head=False, config=config)
            logits = logits_of(chunks, prompts())
            if logits and dist.get_rank() == 1:
                torch.save(logits, checkpoint.parent / f"logits-{layout}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
