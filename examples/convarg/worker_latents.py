"""The latent of each worker from some of their votes, of a model whose latents are vectors and not codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.convarg.predictions import Vote, draw_support, read_votes
from megatron_lpc.command_line import UserError
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.options import SupportOptions

MODES = ("embedding", "gaussian")
"""The latent modes of such models."""


@dataclass(frozen=True, kw_only=True)
class WorkerLatents:
    """W latents, each from a support set of one worker."""

    support_sets: list[list[Vote]]
    vectors: Tensor
    """[W, H] fp64 vectors with `embedding`, [W, d] with `gaussian`."""


def worker_latents(
    scorer: CheckpointScorer, source: str, sizes: Sequence[int], support: SupportOptions
) -> WorkerLatents:
    """The latents of all workers with enough votes for the largest size, for each size of their support sets.

    They are those of `megatron_lpc.evaluate`: with `embedding` a vector that is fitted to the support set, with
    `gaussian` the mean over what the encoder gives for its votes.

    Args:
        source: train.jsonl of `prepare.py`.
        support: the seed of `draw_support`, and how vectors are fitted.

    Raises:
        UserError: no worker has enough votes, or the model cannot score all votes.
    """
    votes = read_votes(Path(source))
    data = scorer.open("support", source)
    if len(data) != len(votes):
        raise UserError(f"{source}: {len(votes)} votes, of which {len(data)} can be scored; raise --max-length")
    drawn = [of_worker for of_worker in draw_support(votes, support.seed).values() if len(of_worker) >= max(sizes)]
    if not drawn:
        raise UserError(f"--support-pairs {max(sizes)}: no worker has as many votes in {source}; lower it")
    places = {vote: index for index, vote in enumerate(votes)}
    examples = {of_worker[0].worker: [places[vote] for vote in of_worker[: max(sizes)]] for of_worker in drawn}
    vectors: list[Tensor] = []
    if scorer.config.latent.latent_mode == "embedding":
        for size in sizes:
            of_size = {worker: indices[:size] for worker, indices in examples.items()}
            vectors += scorer.fit_group_vectors(data, of_size, support).values()
    else:
        means = _means(scorer, data, sorted(index for indices in examples.values() for index in indices))
        vectors = [means[indices[:size]].mean(0) for size in sizes for indices in examples.values()]
    return WorkerLatents(
        support_sets=[of_worker[:size] for size in sizes for of_worker in drawn], vectors=torch.stack(vectors)
    )


def _means(scorer: CheckpointScorer, data: PairDataset, examples: Sequence[int]) -> Tensor:
    """[P, d] what the encoder gives for some of the P pairs, not a number for others."""
    table = scorer.score("support", data, ("prior",), examples=examples)
    means = torch.full((len(data), table.latent_mean.size(1)), torch.nan, dtype=torch.float64)
    means[table.example_index] = table.latent_mean
    return means
