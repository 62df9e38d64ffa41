"""The hidden states of prompts, by which prompts are near or far from each other for the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from megatron_lpc.evaluation.scoring import NO_NOISE, EvaluationStep, gather_pairs
from megatron_lpc.model import LatentQuery
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.pipeline import score_pass
from megatron_lpc.training.setup import RunContext


def prompt_states(context: RunContext, chunks: Sequence[nn.Module], steps: Iterable[EvaluationStep]) -> Tensor:
    """[P, H] fp64 on the CPU of every rank: h_x of each pair, in the order of the example indices.

    Collectives: those of the pipeline; per step two all-gathers over the data parallel group on the last stage; at the
    end two broadcasts over the pipeline group.

    Args:
        chunks: this rank's model chunks.
        steps: those of `PairLoader.evaluation`; at least one.
    """
    groups, device = context.groups, context.platform.device
    query = LatentQuery(sources=("none",), state=NO_NOISE, keeps_hidden=True)
    parts: list[Tensor] = []
    for step in steps:
        batches = [batch.to(device) for batch, _ in step]
        local = []
        for batch, scores, (_, valid) in zip(batches, score_pass(chunks, batches, query), step, strict=False):
            assert scores.hidden is not None
            index = batch.example_index.to(device)[:, None].double()
            local.append(torch.cat([index, scores.hidden.prompt_end.double()], dim=1)[:valid])
        if local:  # Earlier stages have no scores.
            parts += gather_pairs(torch.cat(local), groups.dp)
    whole = from_last_stage(torch.cat(parts) if groups.is_last_stage else None, groups, device).cpu()
    return whole[whole[:, 0].argsort(), 1:]
