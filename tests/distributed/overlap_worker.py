"""Several steps with and without overlapped communication, each parameter in a bucket of its own.

torchrun --nproc-per-node 4 overlap_worker.py OUTPUT_DIR

Rank r writes OUTPUT_DIR/r.pt: (case, overlap) -> losses, weights, and log-probs of an evaluation. Cases of `SAVING`
leave their checkpoints in OUTPUT_DIR/CASE/OVERLAP.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
from layout_cases import LAYOUTS, layout_config, pair_batches
from torch import Tensor

from megatron_lpc.config import Config, with_options
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.evaluation.scoring import evaluation_sources
from megatron_lpc.losses import LatentSchedule, LatentState
from megatron_lpc.model import LatentQuery
from megatron_lpc.platform import select_platform
from megatron_lpc.platform.process_groups import destroy_process_groups
from megatron_lpc.training.checkpoint import Checkpoints
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.objective import TrainingLoss, training_query
from megatron_lpc.training.optimizer import gradient_norm, update_weights
from megatron_lpc.training.pipeline import score_pass, train_pass
from megatron_lpc.training.policy import TrainablePolicy, build_policy, make_trainable
from megatron_lpc.training.reference import build_references
from megatron_lpc.training.setup import RunContext, seed_everything, split_world, start_distributed
from megatron_lpc.training.state import RunState

CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "pp2-lpc-tied": ("pp2", "simpo-lpc-tied", {}),
    "pp2-lpc-untied": ("pp2", "simpo-lpc-untied", {}),
    "pp2-none-tied": ("pp2", "simpo-none-tied", {}),
    "pp2-none-untied": ("pp2", "simpo-none-untied", {}),
    "pp2-dpo": ("pp2", "dpo-straight_through-tied", {}),
    "pp2-recompute": ("pp2", "simpo-lpc-untied", LAYOUTS["recompute_full"][1]),
    "interleaved-lpc": ("pp2_interleaved", "simpo-lpc-untied", {}),
    "interleaved-dpo": ("pp2_interleaved", "dpo-continuous-tied", {}),
    "tp2-dpo-tied": ("tp2", "dpo-lpc-tied", {}),
    "tp2-none-untied": ("tp2", "simpo-none-untied", {}),
    "tp2-continuous-untied": ("tp2", "simpo-continuous-untied", {"bf16": True}),
    "tp2-recompute": ("tp2", "simpo-straight_through-untied", LAYOUTS["recompute_full"][1]),
    "tp2-experts": ("tp2", "simpo-lpc-experts", {}),
}
"""name -> layout and case of `layout_cases`, and options that differ. Layouts that are alike stand together.

Two data parallel ranks in each: gloo adds the gradients of more in an order that depends on the buckets.
"""

SAVING = ("pp2-lpc-tied", "interleaved-dpo", "tp2-dpo-tied", "tp2-continuous-untied")
"""Cases that save after an update, after an evaluation, and after a skipped step."""

OVERLAPS: dict[str, dict[str, object]] = {
    "none": {},
    "grad_reduce": {"overlap_grad_reduce": True, "ddp_bucket_size": 1},
    "param_gather": {"overlap_grad_reduce": True, "overlap_param_gather": True, "ddp_bucket_size": 1},
}
STEPS, EVALUATED, SKIPPED = 4, 2, 3
"""Steps of each run, after which of them it evaluates, and which of them leaves the weights as they are."""

SAVED = (1, EVALUATED, SKIPPED)


def overlaps_of(case: str) -> list[str]:
    """Gradients are reduced alike whether or not parameters are gathered: few cases overlap them alone."""
    return [overlap for overlap in OVERLAPS if overlap != "grad_reduce" or case.startswith("pp2-none")]


class ShortRun:
    """A training run reduced to what reads or writes weights."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        seed_everything(context.config.training.seed, context.groups)
        chunks = build_policy(context)
        (self.reference,) = build_references(context, chunks, [("train", None)])
        self.policy: TrainablePolicy = make_trainable(context, chunks, STEPS)
        self.checkpoints = Checkpoints(context, self.policy)
        self.reduce_metrics = MetricReducer(context.groups, context.platform)
        self.latent_state = LatentSchedule(context.config.latent, 10).at(5)

    def batches(self, seed: int) -> list[PairBatch]:
        groups = self.context.groups
        own = pair_batches(self.context.config, seed=seed)[groups.dp_rank :: groups.dp_size]
        return self.reference.attach(own)

    def step(self, number: int) -> Tensor:
        """Train on micro-batches of this step; the sum of the loss."""
        config, policy = self.context.config, self.policy
        policy.scheduler.step(increment=1)
        for chunk in policy.chunks:
            chunk.zero_grad_buffer()
        policy.optimizer.zero_grad()
        query = training_query(config, self.latent_state)
        parts = train_pass(policy.chunks, self.batches(number), query, TrainingLoss(config, self.latent_state))
        sums = {name: sum(part[name] for part in parts) for name in parts[0]} if parts else None
        totals = self.reduce_metrics(sums)
        norm = gradient_norm(policy.optimizer)
        if number != SKIPPED:
            update_weights(policy.optimizer, norm)
        return totals()["loss"].clone()

    def evaluate(self) -> list[Tensor]:
        """Log-probs of each micro-batch, on the last stage."""
        state = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
        query = LatentQuery(sources=evaluation_sources(self.context.config.latent), state=state)
        return [scores.logps for scores in score_pass(self.policy.chunks, self.batches(seed=0), query)]

    def check_no_gather_is_in_flight(self) -> None:
        """A pass has called every module. An older gather that outlived an update would stand in for a newer one."""
        for chunk in self.policy.chunks:
            for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
                assert group.param_gather_handle is None, [tuple(parameter.shape) for parameter in group.params]

    def weights(self) -> dict[str, Tensor]:
        """This rank's weights after the last update."""
        chunks = self.policy.chunks
        if self.context.config.parallel.overlap_param_gather:
            for chunk in chunks:
                chunk.start_param_sync(force_sync=True)
        return {
            f"{number}.{name}": value.detach().clone()
            for number, chunk in enumerate(chunks)
            for name, value in chunk.named_parameters()
        }


def run_case(context: RunContext) -> dict[str, object]:
    """Losses of the steps, of which one is skipped, an evaluation between them, and this rank's weights after them."""
    run = ShortRun(context)
    losses, logps = [], []
    for number in range(1, STEPS + 1):
        losses.append(run.step(number))
        run.check_no_gather_is_in_flight()
        if number == EVALUATED:
            logps = run.evaluate()
            run.check_no_gather_is_in_flight()
        if number in SAVED:
            run.checkpoints.save(RunState(train_iters=STEPS, iteration=number))
    return {"losses": torch.stack(losses), "logps": logps, "weights": run.weights()}


def config_of(case: str, overlap: str, folder: Path) -> Config:
    layout, table_case, options = CASES[case]
    save = str(folder / case / overlap) if case in SAVING else None
    fixed = {"lr": 1e-2, "clip_grad": 0.0, "use_distributed_optimizer": True, "save": save}
    return with_options(layout_config(layout, table_case), **fixed, **options, **OVERLAPS[overlap])


def contexts(configs: Sequence[Config]) -> list[RunContext]:
    """Of runs of one layout, whose groups are made here; the world is joined once."""
    if dist.is_initialized():
        destroy_process_groups()
        context = split_world(configs[0], select_platform("cpu"))
    else:
        context = start_distributed(configs[0])
    return [RunContext(config=config, platform=context.platform, groups=context.groups) for config in configs]


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {}
    for _, cases in groupby(CASES, lambda case: CASES[case][0]):
        names = [(case, overlap) for case in cases for overlap in overlaps_of(case)]
        configs = [config_of(case, overlap, folder) for case, overlap in names]
        for name, context in zip(names, contexts(configs), strict=True):
            results[name] = run_case(context)
    torch.save(results, folder / f"{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
