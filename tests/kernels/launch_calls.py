"""Small calls of the kernels' functions, which `test_launches.py` makes in a dry run. Importing it needs Triton."""

from __future__ import annotations

from typing import Any

import torch
from lpc_kernels import pair_logps
from lpc_kernels.gumbel_mix.ops import gumbel_mix_op
from lpc_kernels.gumbel_mix.triton_backend import Saved, Upstream, backward
from lpc_kernels.pair_logps.algorithms import ALGORITHMS, Chosen
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import segments_in_response_order
from lpc_kernels.pair_logps.vocab_shard import VocabShard
from torch import Tensor
from torch.nn.functional import logsigmoid

MICRO_BATCHES = [
    [32] * 8,
    [1, 1],
    [16, 16],
    [7, 9, 30, 2],
    [40, 3, 5, 17, 29, 31],
    [0, 64, 3, 0],
    [33] * 32,
]
"""Lengths of responses whose numbers of tokens, pairs and segments are 1, divisible by 16 and neither."""


def train_and_score(lengths: list[int], algorithm: str, latents: int | None, **options: Any) -> None:
    score(lengths, algorithm=algorithm, latents=latents, **options)
    score(lengths, latents=latents, trains=False, **options)


def pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
    return -logsigmoid(logps[:, 0] - logps[:, 1]).sum(0)


def score(
    lengths: list[int],
    *,
    vocab: int = 128,
    hidden_size: int = 64,
    latents: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    trains: bool = True,
    offset: int = 0,
    trained: tuple[str, ...] = ("hidden", "lm_head_weight", "z"),
    **options: Any,
) -> None:
    """One call on responses of these lengths, chosen ones first, and its backward pass where it `trains`.

    latents: None for z of [P, H], 0 for no z.
    offset: elements before the first of hidden and of the LM head.
    trained: what wants a gradient; the LM head does not with algorithm `frozen`.
    """
    num_pairs = len(lengths) // 2
    segment_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    width = hidden_size + offset
    trains_head = "lm_head_weight" in trained and options.get("algorithm") != "frozen"
    weight = torch.zeros(vocab, width, dtype=dtype)[:, offset:].requires_grad_(trains_head)
    hidden = torch.zeros(segment_ids.numel(), width, dtype=dtype)[:, offset:].requires_grad_("hidden" in trained)
    shape = (num_pairs, hidden_size) if latents is None else (latents, num_pairs, hidden_size)
    z = None if latents == 0 else torch.zeros(shape, dtype=dtype, requires_grad=True)
    with torch.set_grad_enabled(trains):
        result = pair_logps(
            hidden,
            weight,
            torch.zeros(segment_ids.numel(), dtype=torch.int64),
            segment_ids,
            len(lengths),
            z=z,
            pair_loss=pair_loss,
            **options,
        )
    if trains:
        assert result.loss is not None
        result.loss.backward()


def mix(
    pairs: int,
    codes: int,
    hidden_size: int,
    *,
    seed: int = 1234,
    straight_through: bool = False,
    dtype: torch.dtype = torch.float32,
    codebook_dtype: torch.dtype = torch.bfloat16,
) -> None:
    """`gumbel_mix` and the backward pass of a loss of z and of the KL."""
    logits_q, logits_p = (torch.zeros(pairs, codes, dtype=dtype, requires_grad=True) for _ in range(2))
    codebook = torch.zeros(codes, hidden_size, dtype=codebook_dtype, requires_grad=True)
    outputs = gumbel_mix_op(logits_q, logits_p, codebook, torch.arange(pairs), seed, 1.0, 0.5, straight_through)
    z, kl = outputs[:2]
    (z.float().sum() + kl.sum()).backward()


def score_without_vocabulary(algorithm: Chosen) -> None:
    """Forward and backward pass on a shard that holds nothing but padding, which a rank may have."""
    hidden, weight, z = (torch.zeros(rows, 8, requires_grad=algorithm != "frozen") for rows in (9, 4, 2))
    segment_ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    problem = Problem(
        hidden=hidden,
        lm_head_weight=weight,
        z=z[None],
        targets=torch.zeros(9, dtype=torch.int64),
        segments=segments_in_response_order(segment_ids, 4, 2),
        shard=VocabShard(vocab_start=4, vocab_local=0, group_name=None, softcap=None, temperature=1.0),
        chunk_size=4,
        with_entropy=False,
        pair_loss=pair_loss,
    )
    scores = ALGORITHMS[algorithm](problem)
    if algorithm != "frozen":
        loss = scores.token_logps.sum() if scores.loss is None else scores.loss
        loss.backward()
    ALGORITHMS["scoring"](problem)


def mix_backward_of_everything() -> None:
    """The backward pass of `gumbel_mix` for a loss that reads every output, with some gradients unaligned."""
    pairs, codes, hidden_size = 3, 8, 32
    of_codes = [torch.zeros(pairs, codes) for _ in range(6)]
    codebook = torch.zeros(codes, hidden_size)
    saved = Saved(*of_codes[:2], codebook, *of_codes[2:])
    of_pairs = [torch.zeros(pairs + 1)[1:] for _ in range(3)]
    d_kl, d_entropy_q, d_entropy_p = of_pairs
    upstream = Upstream(torch.zeros(pairs, hidden_size), d_kl, *of_codes[:2], d_entropy_q, d_entropy_p, *of_codes[2:4])
    backward(saved, upstream, tau=1.0, prior_mix=0.5)
