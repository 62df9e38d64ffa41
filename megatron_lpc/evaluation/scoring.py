"""Score a whole data set, pair by pair, under several latents; everything measured afterwards is read from that table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.nn.functional import pad

from megatron_lpc.config import Config, LatentConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentState, finish_metrics, pair_metrics, preference_loss
from megatron_lpc.model import LatentQuery, LatentSource, PairScores
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.pipeline import on_last_stage, score_pass
from megatron_lpc.training.reference import Reference

_NO_NOISE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
"""Evaluation latents are mixtures by probability; the settings of the relaxed sample do not matter."""


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """What a model says of P pairs; fp64 on the CPU, in the order of `rows`."""

    rows: Tensor
    """[P] int64 row of each pair in its data set, ascending."""
    logps: Tensor
    """[L, P, 2] summed log-probs of chosen and rejected, one slice per latent."""
    reference: Tensor
    """[P, 2] the same under the reference; NaN where there is none."""
    length: Tensor
    """[P, 2] response tokens."""
    posterior_logits: Tensor
    """[P, K]; K = 0 where there are no codes."""
    prior_logits: Tensor
    """[P, K]."""


def evaluation_sources(latent: LatentConfig) -> tuple[LatentSource, ...]:
    """Latents under which a model of this mode is judged."""
    modes: dict[str, tuple[LatentSource, ...]] = {
        "lpc": ("prior", "posterior"),
        "continuous": ("prior",),
        "none": ("none",),
    }
    return modes[latent.latent_mode]


def evaluate_pairs(
    config: Config,
    chunks: list[nn.Module],
    steps: Iterable[list[tuple[PairBatch, int]]],
    reference: Reference,
    device: torch.device,
) -> dict[LatentSource, dict[str, float]]:
    """Metrics of a data set under each latent of the model's mode, on every rank. Arguments and collectives as `score_pairs`."""
    sources = evaluation_sources(config.latent)
    table = score_pairs(chunks, steps, reference, sources, device)
    return {source: table_metrics(config, table, index) for index, source in enumerate(sources)}


def score_pairs(
    chunks: list[nn.Module],
    steps: Iterable[list[tuple[PairBatch, int]]],
    reference: Reference,
    sources: tuple[LatentSource, ...],
    device: torch.device,
) -> PairTable:
    """Score every pair once; the table is whole on every rank.

    Collectives: those of the pipeline; per step two all-gathers over the data parallel group on the last stage; at the end two broadcasts
    over the pipeline group.

    Args:
        steps: `PairLoader.evaluation`: micro-batches, each with the number of leading pairs that count.
        sources: latents, the first axis of `PairTable.logps`.
    """
    query = LatentQuery(sources=sources, state=_NO_NOISE)
    parts: list[Tensor] = []
    for step in steps:
        batches = reference.attach([batch.to(device) for batch, _ in step])
        scores = score_pass(chunks, batches, query)
        if scores:
            local = torch.cat([_rows(b, s, valid) for b, s, (_, valid) in zip(batches, scores, step, strict=True)])
            parts += _gather_data_parallel(local)
    table = from_last_stage(torch.cat(parts) if on_last_stage() else None, device).cpu()
    table = table[table[:, 0] >= 0]
    table = table[table[:, 0].argsort()]
    codes = (table.size(1) - 5 - 2 * len(sources)) // 2
    row, reference_logps, length, logps, posterior, prior = table.split(
        [1, 2, 2, 2 * len(sources), codes, codes], dim=1
    )
    return PairTable(
        rows=row[:, 0].long(),
        logps=logps.view(-1, len(sources), 2).transpose(0, 1),
        reference=reference_logps,
        length=length,
        posterior_logits=posterior,
        prior_logits=prior,
    )


def _rows(batch: PairBatch, scores: PairScores, valid: int) -> Tensor:
    """[B, F] fp64: one row of numbers per pair; the row number of a pair that does not count is -1."""
    pairs = batch.num_pairs
    counts = torch.arange(pairs, device=batch.example_index.device) < valid
    reference = (
        batch.reference_logps if batch.reference_logps is not None else scores.logps.new_full((2 * pairs,), torch.nan)
    )
    columns = [
        torch.where(counts, batch.example_index, -1)[:, None],
        reference.view(2, pairs).T,
        batch.response_length.view(2, pairs).T,
        scores.logps.view(-1, pairs).T.reshape(pairs, -1),
    ]
    if (
        (latent := scores.latent) is not None
        and latent.posterior_logits is not None
        and latent.prior_logits is not None
    ):
        columns += [latent.posterior_logits, latent.prior_logits]
    return torch.cat([column.double() for column in columns], dim=1)


def _gather_data_parallel(local: Tensor) -> list[Tensor]:
    """Tables of all data parallel ranks; packing gives each rank a number of pairs of its own."""
    group = parallel_state.get_data_parallel_group()
    if group.size() == 1:
        return [local]
    counts = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(group.size())]
    dist.all_gather(counts, torch.tensor([len(local)], device=local.device), group=group)
    longest = max(int(count) for count in counts)
    parts = [local.new_empty(longest, local.size(1)) for _ in counts]
    dist.all_gather(parts, pad(local, (0, 0, 0, longest - len(local))), group=group)
    return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]


def table_metrics(config: Config, table: PairTable, latent: int) -> dict[str, float]:
    """The metrics of training, of the preference loss alone, over all pairs of a table under its `latent`-th latent."""
    logps = table.logps[latent].T.reshape(-1)
    preference = preference_loss(config.loss, logps, table.reference.T.reshape(-1), table.length.T.reshape(-1))
    codes = (table.posterior_logits, table.prior_logits) if table.posterior_logits.size(1) else (None, None)
    return finish_metrics(pair_metrics(preference.loss, preference, logps, *codes))
