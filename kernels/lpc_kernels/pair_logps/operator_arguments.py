"""How the operators of PyTorch take a problem: as a flat list of tensors and numbers.

`torch.compile` keeps an operator in its graph, but an operator cannot take a dataclass. `flat` takes a problem apart
and `problem_of` puts it together again:

- `index` is (targets, cu_seqlens, pair_of_segment);
- `sizes` is (vocab_start, vocab_local, chunk_size, with_entropy, main_grad_only);
- `scaling` is (logit_softcap, or 0 for none; temperature).

The operators are in the files of their algorithms. Each returns first the log-probs [L, N], the only differentiable
output, and then the statistics [3 or 4, L, N]. Shapes are those of `problem.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import Segments
from lpc_kernels.pair_logps.vocab_shard import VocabShard

Flat = tuple[Tensor, Tensor, Tensor | None, list[Tensor], list[int], list[float], str | None]
"""hidden, lm_head_weight, z, index, sizes, scaling, group_name."""


def flat(problem: Problem) -> Flat:
    """The arguments that every operator takes. `main_grad` and `pair_loss` are not among them."""
    segments, shard = problem.segments, problem.shard
    index = [problem.targets, segments.cu_seqlens, segments.pair_of_segment]
    flags = [int(problem.with_entropy), int(problem.main_grad_only)]
    sizes = [shard.vocab_start, shard.vocab_local, problem.chunk_size, *flags]
    scaling = [0.0 if shard.softcap is None else float(shard.softcap), float(shard.temperature)]
    return problem.hidden, problem.lm_head_weight, problem.z, index, sizes, scaling, shard.group_name


def problem_of(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
    main_grad: Tensor | None = None,
) -> Problem:
    """The problem whose `flat` arguments these are."""
    targets, cu_seqlens, pair_of_segment = index
    vocab_start, vocab_local, chunk_size, with_entropy, main_grad_only = sizes
    softcap, temperature = scaling
    return Problem(
        hidden=hidden,
        lm_head_weight=lm_head_weight,
        z=z,
        targets=targets,
        segments=Segments(cu_seqlens, pair_of_segment, hidden.size(0)),
        shard=VocabShard(vocab_start, vocab_local, group_name, softcap or None, temperature),
        chunk_size=chunk_size,
        with_entropy=bool(with_entropy),
        main_grad=main_grad,
        main_grad_only=bool(main_grad_only),
    )


def empty_outputs(hidden: Tensor, z: Tensor | None, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probs and statistics without values."""
    num_latents = 1 if z is None else z.size(0)
    num_tokens = hidden.size(0)
    num_stats = 4 if sizes[3] else 3
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logps = hidden.new_empty((num_latents, num_tokens), dtype=dtype)
    return logps, hidden.new_empty((num_stats, num_latents, num_tokens), dtype=dtype)
