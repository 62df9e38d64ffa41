"""Inputs, the definition, and the cases that tensor parallel ranks and one process must agree on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from lpc_kernels import pair_logps
from lpc_kernels.pair_logps.reference import pair_logps_reference
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import logsigmoid


def draw(
    tokens: int, vocab: int, hidden_size: int, pairs: int, latents: int | None, seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """hidden, weight, z ([P, H], or [L, P, H] with `latents`), targets and segment ids of 2 `pairs` responses.

    Some responses are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (pairs, hidden_size) if latents is None else (latents, pairs, hidden_size)
    return {
        "hidden": torch.randn(tokens, hidden_size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "lm_head_weight": torch.randn(vocab, hidden_size, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_(),
        "z": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "targets": torch.randint(vocab, (tokens,), generator=generator),
        "segment_ids": torch.randint(2 * pairs, (tokens,), generator=generator).sort().values,
    }


def reference(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    segment_ids: Tensor,
    num_segments: int,
    z: Tensor | None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The package's definition, of the LM head without its padding."""
    unpadded = lm_head_weight[:vocab_size]
    options = {"logit_softcap": softcap, "temperature": temperature}
    return pair_logps_reference(hidden, unpadded, targets, segment_ids, num_segments, z, **options)


@dataclass(frozen=True)
class Case:
    shards: tuple[int, ...]
    """Vocabulary entries on each rank, with padding."""
    algorithm: Literal["recompute", "pairwise", "frozen"] = "recompute"
    vocab_size: int | None = None
    tokens: int = 25
    latents: int | None = None
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    entropy: bool = False
    compiled: bool = False
    only_z: bool = False
    """A gradient of z is wanted and no other."""
    shared: bool = False
    """All pairs share the latents."""

    @property
    def pairs_of_z(self) -> int:
        return 1 if self.shared else PAIRS


_SHAPES = {
    "equal": Case((8, 8)),
    "latents": Case((8, 8), latents=2, entropy=True),
    "softcap": Case((8, 8), latents=3, softcap=2.0),
    "unequal": Case((11, 4)),
    "one token id": Case((12, 1), latents=2),
    "padded": Case((8, 8), vocab_size=13, entropy=True),
    "only padding": Case((8, 4), vocab_size=8, latents=2, entropy=True),
    "only padding, one latent": Case((8, 4), vocab_size=8, latents=1),
    "no loss tokens": Case((8, 8), tokens=0, latents=2),
    "fp64": Case((5, 8), vocab_size=11, latents=2, dtype=torch.float64),
    "bf16": Case((8, 8), latents=2, dtype=torch.bfloat16),
    "compiled": Case((8, 8), latents=2, compiled=True),
    "four ranks": Case((4, 4, 4, 4), latents=2),
    "four ranks, uneven": Case((1, 9, 5, 3), vocab_size=14),
}
_FACTORED = {
    "z only": Case((8, 8), only_z=True),
    "z only, latents": Case((11, 4), latents=2, only_z=True, vocab_size=13),
    "z only, softcap": Case((8, 8), latents=2, only_z=True, softcap=2.0),
    "z only, only padding": Case((8, 4), vocab_size=8, latents=2, only_z=True),
    "many latents": Case((8, 8), latents=9, dtype=torch.float64),
    "shared latents": Case((11, 4), latents=3, shared=True),
    "shared latents, z only": Case((8, 8), latents=8, shared=True, only_z=True),
}
CASES = {
    f"{algorithm}, {name}": replace(case, algorithm=algorithm)
    for shapes, algorithms in ((_SHAPES, ("recompute", "pairwise", "frozen")), (_FACTORED, ("recompute", "pairwise")))
    for name, case in shapes.items()
    for algorithm in algorithms
}
PAIRS, HIDDEN_SIZE, CHUNK = 3, 8, 7


def run(case: Case, rank: int | None, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Outputs and gradients on one rank's shard, or, with `rank` None, of the whole head."""
    edges = [sum(case.shards[:n]) for n in range(len(case.shards) + 1)]
    real = case.vocab_size or edges[-1]
    inputs = draw(case.tokens, edges[-1], HIDDEN_SIZE, PAIRS, case.latents, 7, case.dtype)
    corners = [min(token_id, real - 1) for edge in edges for token_id in (max(edge - 1, 0), edge)]
    targets = torch.cat((torch.tensor(corners), inputs["targets"] % real))[: case.tokens]
    start, stop = (0, edges[-1]) if rank is None else (edges[rank], edges[rank + 1])
    trains_head = case.algorithm != "frozen" and not case.only_z
    weight = inputs["lm_head_weight"].detach()[start:stop].clone().requires_grad_(trains_head)
    inputs["hidden"].requires_grad_(not case.only_z)
    if case.shared:
        inputs["z"] = inputs["z"].detach()[:, :1].requires_grad_()
    whole = case.algorithm != "pairwise"
    call = torch.compile(pair_logps, fullgraph=whole, backend="aot_eager") if case.compiled else pair_logps
    result = call(
        inputs["hidden"],
        weight,
        targets,
        inputs["segment_ids"],
        2 * PAIRS,
        z=inputs["z"],
        pair_loss=_pair_loss,
        algorithm=case.algorithm,
        vocab_start=start,
        vocab_size=case.vocab_size,
        tp_group=group,
        chunk_size=CHUNK,
        logit_softcap=case.softcap,
        with_entropy=case.entropy,
    )
    loss, token_logps = result.loss, result.token_logps
    if case.algorithm != "pairwise":
        coefficients = torch.linspace(-1, 1.5, token_logps.numel(), dtype=token_logps.dtype)
        loss = loss + (coefficients.view(token_logps.shape) * token_logps).sum()
    candidates = {"hidden": inputs["hidden"], "z": inputs["z"], "lm_head_weight": weight}
    wanted = {name: value for name, value in candidates.items() if value.requires_grad}
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    outputs = {"sums": result.logps, "token_logps": token_logps, "loss": result.loss, "entropy": result.entropy}
    outputs["pair_losses"] = result.pair_losses
    return {name: value.detach() for name, value in outputs.items() if value is not None} | gradients


def _pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
    margins = logps[:, 0] - logps[:, 1] + pairs
    return (-logsigmoid(0.2 * margins) + 0.01 * logps[:, 0].square()).sum(0)
