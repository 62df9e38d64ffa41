"""Several steps with and without overlapped communication, each parameter in a bucket of its own.

torchrun --nproc-per-node 4 overlap_worker.py OUTPUT_DIR

Two pipeline stages on two data parallel ranks. Rank r writes OUTPUT_DIR/r.pt: (case, overlap) -> losses and weights.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from layout_cases import layout_config, pair_batches

from megatron_lpc.losses import LatentSchedule
from megatron_lpc.model import build_model
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.objective import TrainingLoss, training_query
from megatron_lpc.training.optimizer import optimizer_step
from megatron_lpc.training.pipeline import train_pass
from megatron_lpc.training.policy import make_trainable
from megatron_lpc.training.setup import RunContext, seed_everything, start_distributed

CASES = ("simpo-lpc-tied", "simpo-lpc-untied", "simpo-none-tied", "simpo-none-untied")
OVERLAPS = {
    "none": {},
    "grad_reduce": {"overlap_grad_reduce": True, "ddp_bucket_size": 1},
    "param_gather": {"overlap_grad_reduce": True, "overlap_param_gather": True, "ddp_bucket_size": 1},
}
STEPS, SKIPPED = 4, 2


def run_case(context: RunContext) -> dict[str, object]:
    """Losses of the steps, of which one is skipped, and this rank's weights after them."""
    config, platform, groups = context.config, context.platform, context.groups
    seed_everything(config.training.seed, groups)
    policy = make_trainable(context, build_model(config, platform, groups, config.latent), STEPS)
    state = LatentSchedule(config.latent, 10).at(5)
    reduce_metrics = MetricReducer(groups, platform.device)
    losses = []
    for step in range(STEPS):
        policy.scheduler.step(increment=1)
        for chunk in policy.chunks:
            chunk.zero_grad_buffer()
        policy.optimizer.zero_grad()
        batches = pair_batches(config, seed=step)[groups.dp_rank :: groups.dp_size]
        parts = train_pass(policy.chunks, batches, training_query(config, state), TrainingLoss(config, state))
        sums = {name: sum(part[name] for part in parts) for name in parts[0]} if groups.is_last_stage else None
        losses.append(reduce_metrics(sums)["loss"].clone())
        optimizer_step(policy.optimizer, step != SKIPPED)
    if config.parallel.overlap_param_gather:
        for chunk in policy.chunks:
            chunk.start_param_sync(force_sync=True)
    weights = {name: value.detach().clone() for chunk in policy.chunks for name, value in chunk.named_parameters()}
    return {"losses": torch.stack(losses), "weights": weights}


def main() -> None:
    torch.set_num_threads(1)
    configs = {}
    for case in CASES:
        config = layout_config("pp2", case)
        training = replace(config.training, lr=1e-2, clip_grad=0.0)
        for overlap, options in OVERLAPS.items():
            parallel = replace(config.parallel, use_distributed_optimizer=True, **options)
            configs[case, overlap] = replace(config, training=training, parallel=parallel)
    context = start_distributed(next(iter(configs.values())))
    results = {name: run_case(replace(context, config=config)) for name, config in configs.items()}
    torch.save(results, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
