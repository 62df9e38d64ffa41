"""Run one training step of many cases in one parallel layout, and write what came out.

    torchrun --nproc-per-node N layout_worker.py LAYOUT OUTPUT_DIR

Every process of a parallel layout starts once and runs all cases of `layout_cases.CASES`, `START_CASES`,
`PACKING_CASES` and `FROZEN_CASES`; rank r writes OUTPUT_DIR/LAYOUT-r.pt with, per case, the losses and log-probs of the
step, and its pieces of every gradient by global name and offset.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from layout_cases import (
    CASES,
    FROZEN_CASES,
    LAYOUTS,
    PACKING_CASES,
    PACKINGS,
    START_CASES,
    frozen_config,
    layout_config,
    pair_batches,
    start_config,
)

from megatron_lpc.config import Config, with_options
from megatron_lpc.losses import LatentSchedule, uses_reference
from megatron_lpc.model import wrap_data_parallel
from megatron_lpc.model.initialize import sharded_tensors
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.objective import TrainingLoss, training_query
from megatron_lpc.training.pipeline import train_head_pass, train_pass
from megatron_lpc.training.policy import build_policy
from megatron_lpc.training.reference import NoReference, OnlineReference, split_reference
from megatron_lpc.training.setup import RunContext, seed_everything, start_distributed

_START_AT_ZERO = ("prior.2.weight", "posterior.2.weight", "encoder.2.weight", "latent_head.vectors")


def run_case(context: RunContext, packing: str = "separate", is_start: bool = False) -> dict[str, object]:
    """One step: metrics of the global batch, log-probs by sample id, gradients by name and place.

    is_start: with the weights that training starts with.
    """
    config, platform, groups = context.config, context.platform, context.groups
    seed_everything(config.training.seed, groups)
    policy = build_policy(context)
    _draw_last_layers(policy)
    if config.latent.latent_mode == "none" and not is_start:
        _move_from_reference(policy)
    chunks = wrap_data_parallel(config, policy)
    is_frozen = config.training.freeze_backbone
    reference = OnlineReference(context) if uses_reference(config.loss) and not is_frozen else NoReference()
    batches = pair_batches(config, packing)[groups.dp_rank :: groups.dp_size]
    batches = reference.attach([batch.to(platform.device) for batch in batches])

    state = LatentSchedule(config.latent, 10).at(5)
    training_loss = TrainingLoss(config, state)
    seen: dict[int, torch.Tensor] = {}
    noise: dict[int, torch.Tensor] = {}

    def recorded(batch, scores):
        loss = training_loss(batch, scores)
        if len(scores.logps) > 1:
            batch, scores = split_reference(batch, scores)
        for i, sample in enumerate(batch.sample_ids.tolist()):
            ref = batch.reference_logps if batch.reference_logps is not None else torch.zeros(2 * batch.num_pairs)
            pair = slice(i, None, batch.num_pairs)
            seen[sample] = torch.stack([scores.logps[0, pair], ref[pair]]).detach().cpu()
            if scores.latent is not None:
                # Of one row where all pairs share their latents.
                noise[sample] = scores.latent.z[0].expand(batch.num_pairs, -1)[i].detach().cpu()
        return loss

    for chunk in chunks:
        chunk.zero_grad_buffer()
    run_pass = train_head_pass if is_frozen else train_pass
    parts = run_pass(chunks, batches, training_query(config, state), recorded)
    sums = {name: sum(part[name] for part in parts) for name in parts[0]} if groups.is_last_stage else None
    totals = MetricReducer(groups, platform)(sums)()
    return {"metrics": totals, "logps": seen, "z": noise, "grads": _gradients(chunks, config)}


@torch.no_grad()
def _draw_last_layers(chunks) -> None:
    """What starts at 0, where no gradient reaches the layers before, or all groups have one latent."""
    for chunk in chunks:
        for name, weight in chunk.named_parameters():
            if "latent_head" in name and name.endswith(_START_AT_ZERO):
                weight.copy_(torch.empty(weight.shape).normal_(0, 0.2, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def _move_from_reference(chunks) -> None:
    """Without a latent the policy starts as its reference, and rounding would decide which response it prefers."""
    for chunk in chunks:
        for name, weight in chunk.named_parameters():
            if name.endswith("final_layernorm.weight"):
                weight.mul_(1.1)


def _gradients(chunks, config: Config) -> dict[tuple[str, tuple[int, ...]], tuple[tuple[int, ...], torch.Tensor]]:
    """This rank's pieces of the gradient: (name, global offset) -> (global shape, piece)."""
    pieces = {}
    for chunk in chunks:
        if config.parallel.use_distributed_optimizer:
            _gather_gradient_shards(chunk)
        trained = [parameter for parameter in chunk.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.main_grad.clone()
        kept = [parameter for buffer in chunk.buffers + chunk.expert_parallel_buffers for parameter in buffer.params]
        assert {id(parameter) for parameter in kept} == {id(parameter) for parameter in trained}
        for tensor in sharded_tensors(chunk.module.sharded_state_dict()):
            is_trained = not config.training.freeze_backbone or tensor.key.startswith("latent_head.")
            if isinstance(tensor.data, torch.Tensor) and tensor.data.is_floating_point() and is_trained:
                piece = tensor.data.detach().clone().view([1] * tensor.prepend_axis_num + list(tensor.local_shape))
                pieces[tensor.key, tuple(tensor.global_offset)] = (tuple(tensor.global_shape), piece)
    return pieces


def _gather_gradient_shards(chunk) -> None:
    """The distributed optimizer leaves each rank with the reduced gradient of only its own share."""
    for bucket_group in chunk.bucket_groups:
        group = bucket_group.intra_distributed_optimizer_instance_group
        for bucket in bucket_group.buckets:
            own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


def main() -> None:
    layout, output = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    configs = {case: layout_config(layout, case) for case in CASES}
    configs |= {case: start_config(layout, case) for case in START_CASES}
    context = start_distributed(configs[next(iter(CASES))])
    results = {
        case: run_case(replace(context, config=config), is_start=case in START_CASES)
        for case, config in configs.items()
    }
    for name, (case, packing) in PACKING_CASES.items():
        config = with_options(configs[case], **PACKINGS[packing])
        results[name] = run_case(replace(context, config=config), packing)
    for name, (_, packing) in FROZEN_CASES.items():
        config = with_options(frozen_config(layout, name), **PACKINGS[packing or "separate"])
        results[name] = run_case(replace(context, config=config), packing or "separate")
    torch.save(results, output / f"{layout}-{dist.get_rank()}.pt")
    dist.barrier()
    assert layout in LAYOUTS


if __name__ == "__main__":
    main()
