"""Inputs, the fp64 definition, and the cases that two tensor parallel ranks and one process must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lpc_kernels import pair_logps
from torch import Tensor
from torch.distributed import ProcessGroup


def draw(rows: int, words: int, width: int, pairs: int, latents: int | None, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """hidden, weight, z ([P, H], or [L, P, H] with `latents`), targets and ascending segments of 2 `pairs` responses, some empty."""
    generator = torch.Generator().manual_seed(seed)
    shape = (pairs, width) if latents is None else (latents, pairs, width)
    return {
        "hidden": torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "weight": torch.randn(words, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "z": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "targets": torch.randint(words, (rows,), generator=generator),
        "segments": torch.randint(2 * pairs, (rows,), generator=generator).sort().values,
    }


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    segments: Tensor,
    num_segments: int,
    z: Tensor | None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sums and log-probs of the rows by the definition: z added to the hidden states, all logits at once, autograd."""
    moved = hidden if z is None else hidden + z[..., segments % z.size(-2), :]
    logits = moved @ weight[:vocab_size].T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = (logits / temperature).log_softmax(-1)
    picked = logps[..., torch.arange(len(targets)), targets]
    sums = torch.stack([picked[..., segments == s].sum(-1) for s in range(num_segments)], dim=-1)
    return sums, picked


@dataclass(frozen=True)
class Case:
    shards: tuple[int, int]
    """Words on each rank, padding included."""
    vocab_size: int | None = None
    rows: int = 25
    latents: int | None = None
    dtype: torch.dtype = torch.float32
    softcap: float | None = None


CASES = {
    "equal": Case((8, 8)),
    "latents": Case((8, 8), latents=2),
    "softcap": Case((8, 8), latents=3, softcap=2.0),
    "unequal": Case((11, 4)),
    "one word": Case((12, 1), latents=2),
    "padded": Case((8, 8), vocab_size=13),
    "only padding": Case((8, 4), vocab_size=8, latents=2),
    "no rows": Case((8, 8), rows=0, latents=2),
    "fp64": Case((5, 8), vocab_size=11, latents=2, dtype=torch.float64),
    "bf16": Case((8, 8), latents=2, dtype=torch.bfloat16),
}


def run(case: Case, rank: int | None, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Outputs and gradients on one rank's shard, or, with `rank` None, of the whole head."""
    first, words = case.shards[0], sum(case.shards)
    real = case.vocab_size or words
    inputs = draw(case.rows, words, 8, 3, case.latents, 7, case.dtype)
    edges = torch.tensor([0, min(first, real) - 1, min(first, real - 1), real - 1])
    targets = torch.cat((edges, inputs["targets"] % real))[: case.rows]
    start, stop = {None: (0, words), 0: (0, first), 1: (first, words)}[rank]
    weight = inputs["weight"].detach()[start:stop].clone().requires_grad_()
    sums, rows = pair_logps(
        inputs["hidden"],
        weight,
        targets,
        inputs["segments"],
        6,
        z=inputs["z"],
        vocab_start=start,
        vocab_size=case.vocab_size,
        tp_group=group,
        chunk_size=7,
        logit_softcap=case.softcap,
        return_token_logps=True,
    )
    loss = sum((torch.linspace(-1, 1.5, x.numel(), dtype=x.dtype).view(x.shape) * x).sum() for x in (sums, rows))
    gradients = torch.autograd.grad(loss, (inputs["hidden"], weight, inputs["z"]))
    return {"sums": sums.detach(), "rows": rows.detach(), **dict(zip(("hidden", "weight", "z"), gradients, strict=True))}
