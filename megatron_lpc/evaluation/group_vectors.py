"""The vector of a new group in `latent_mode: embedding`: gradient steps on its support set, with all else frozen.

Shape legend: S groups, B pairs, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.evaluation.options import SupportOptions
from megatron_lpc.evaluation.scoring import NO_NOISE, EvaluationStep
from megatron_lpc.model import LatentQuery, PairScores, unwrapped
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.learning_rates import per_width
from megatron_lpc.training.objective import make_preference_pair_loss
from megatron_lpc.training.pipeline import score_pass
from megatron_lpc.training.reference import Reference, ZeroLatentReference
from megatron_lpc.training.setup import RunContext


def fit_group_vectors(
    context: RunContext,
    chunks: Sequence[nn.Module],
    steps: Iterable[EvaluationStep],
    reference: Reference,
    group_of_example: Tensor,
    support: SupportOptions,
) -> Tensor:
    """[S, H] fp64 on the CPU: vectors from `support.steps` steps of Adam on the preference loss, from the generic one.

    Adam goes by element, so groups do not influence each other. The backbone runs once over the support sets; the last
    stage holds their hidden states on its device.

    Collectives: those of the pipeline; per step one all-reduce over the data parallel group, and those of `pair_logps`
    over the tensor parallel group, on the last stage; at the end two broadcasts over the pipeline group.

    Args:
        chunks: this rank's model chunks.
        steps: those of `PairLoader.evaluation` over the pairs of all support sets.
        group_of_example: [P] int64 number of the support set that each example is in, 0 ... S - 1.
    """
    groups, device = context.groups, context.platform.device
    num_groups = int(group_of_example.max()) + 1
    query = LatentQuery(sources=("none",), state=NO_NOISE, keeps_hidden=True)
    kept: list[tuple[PairBatch, int]] = []
    for step in steps:
        batches = reference.attach([batch.to(device) for batch, _ in step])
        scored = zip(batches, score_pass(chunks, batches, query), step, strict=False)  # No scores on earlier stages.
        for batch, scores, (_, valid) in scored:
            if isinstance(reference, ZeroLatentReference):
                batch = replace(batch, reference_logps=scores.logps[0])
            kept.append((replace(batch, hidden=scores.hidden), valid))
    fitted = None
    if groups.is_last_stage:
        fit = _Fit(context, unwrapped(chunks[-1]), kept, group_of_example)
        fitted = fit.run(num_groups, support.steps, per_width(support.lr, context.config.model.hidden_size)).double()
    return from_last_stage(fitted, groups, device).cpu()


class _Fit:
    """Steps on the last pipeline stage."""

    def __init__(
        self, context: RunContext, model: Any, batches: list[tuple[PairBatch, int]], group_of_example: Tensor
    ) -> None:
        self._context = context
        self._model = model
        device = context.platform.device
        self._batches = [(batch, valid, group_of_example[batch.example_index].to(device)) for batch, valid in batches]

    @torch.enable_grad()
    def run(self, num_groups: int, steps: int, lr: float) -> Tensor:
        """[S, H] fp32 vectors after that many steps of Adam."""
        self._model.requires_grad_(False)
        generic = self._model.latent_head.vectors[:1]
        vectors = generic.float().repeat(num_groups, 1).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=lr)
        for _ in range(steps):
            vectors.grad = torch.zeros_like(vectors)
            for batch, valid, group_ids in self._batches:
                if valid:
                    of_pairs = vectors[group_ids]
                    # What fills a step up has no gradient.
                    of_pairs[valid:] = generic
                    self._loss(batch, of_pairs).backward()
            dist.all_reduce(vectors.grad, group=self._context.groups.dp)
            optimizer.step()
        return vectors.detach()

    def _loss(self, batch: PairBatch, vectors: Tensor) -> Tensor:
        """Sum of the preference losses of the pairs, each under a vector of [B, H]."""
        make_pair_loss = partial(make_preference_pair_loss, self._context.config.loss)
        query = LatentQuery(sources=("mixture",), state=NO_NOISE, make_pair_loss=make_pair_loss)
        scores: PairScores = self._model.score(batch.hidden, replace(batch, mixture=vectors), query)
        assert scores.loss is not None
        return scores.loss
