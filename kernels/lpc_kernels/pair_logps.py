"""Summed log-probabilities of responses, chosen and rejected, from hidden states, latents and the LM head; and the loss of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.head import Head
from lpc_kernels.pairwise import PairLoss, Pairwise, summed_loss
from lpc_kernels.row_work import wide_in_pytorch
from lpc_kernels.runs import Runs, by_response
from lpc_kernels.token_logps_op import token_logps_op
from lpc_kernels.vocab_parallel import entropy, log_sum_exp

Algorithm = Literal["auto", "recompute", "pairwise", "frozen"]
P = ParamSpec("P")


@dataclass(frozen=True)
class PairLogps:
    """What `pair_logps` gives: fp32, or fp64 for fp64 inputs. S responses, N rows; an axis of L latents comes first where z has one."""

    logps: Tensor
    """[S] or [L, S] log-probs summed over each response, 0 for one without rows. Differentiable but with algorithm `pairwise`."""
    token_logps: Tensor
    """[N] or [L, N] log-prob of each target; -inf for one outside of the vocabulary. Differentiable but with algorithm `pairwise`."""
    log_sum_exp: Tensor
    """[N] or [L, N] logarithm of the sum of exp(logit), without gradient."""
    entropy: Tensor | None
    """[N] or [L, N] entropy of the words' distribution, nats, without gradient; None unless asked for."""
    loss: Tensor | None
    """Scalar: the pair losses, summed over pairs. Differentiable with every algorithm; None without `pair_loss`."""


def _compiled_unless_pairwise(function: Callable[P, PairLogps]) -> Callable[P, PairLogps]:
    """Keeps `torch.compile` out of a call whose chunks depend on the data and in the midst of which a loss is called."""
    alone = torch.compiler.disable(
        function, reason="pair_loss is called amid the chunks; algorithm='recompute' makes a whole graph"
    )

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> PairLogps:
        pairwise = options.get("pair_loss") is not None and options.get("algorithm", "auto") in ("auto", "pairwise")
        return alone(*args, **options) if pairwise else function(*args, **options)

    return call


@_compiled_unless_pairwise
def pair_logps(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    segment_ids: Tensor,
    num_segments: int,
    *,
    z: Tensor | None = None,
    pair_loss: PairLoss | None = None,
    algorithm: Algorithm = "auto",
    vocab_start: int = 0,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
    chunk_size: int = 1024,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    main_grad: Tensor | None = None,
) -> PairLogps:
    """Sum over each response of log softmax(cap(W (h_t + z)) / temperature)[target], with cap(x) = c tanh(x / c) or x.

    hidden: [N, H], only rows that carry loss. lm_head_weight: [V_local, H], this rank's rows of the head from global word `vocab_start` on; the
    shards of the ranks may differ in size. targets: [N] int64 global words. segment_ids: [N] int64 response of each row, ascending, in
    [0, num_segments). z: [P, H], or [L, P, H] for L latents at the price of little more than one; response s belongs to pair s % P.
    pair_loss: from [L, 2, C] summed log-probs of C pairs (L = 1 unless z is [L, P, H]), chosen first, and the [C] int64 numbers of the
    pairs, to the pairs' losses [C]; responses are then the chosen ones of all pairs and after them the rejected ones. It may be called
    several times, with some of the pairs each time, and only gradients by the log-probs come back: tensors that it encloses get none.
    vocab_size: words from this one on are padding and have no probability; None: no padding. chunk_size: rows whose logits are in memory
    at one time (twice as many with a `tp_group`, as communication is hidden beneath the next chunk); changes results by rounding only.
    main_grad: [V_local, H] fp32 (fp64) buffer, such as megatron-core's `main_grad`, that the gradient of lm_head_weight is added to; the
    gradient that autograd gets is then zero.

    Algorithms, and their cost in large products (N V H multiplications and as many additions are 2 N V H):
    - `recompute` 8 N V H: backward makes the logits again, for any loss of what is returned.
    - `pairwise` 6 N V H, needs `pair_loss`: gradients are made in the forward pass, in chunks of whole pairs (a pair of more than
      `chunk_size` rows is a chunk by itself); backward scales them, once. `loss` alone is differentiable. With `main_grad` the
      gradient is in the buffer after the forward pass, so the loss must enter the final loss with factor 1 (else RuntimeError).
    - `frozen` (2 + 2 L) N V H, needs a lm_head_weight without gradient: any loss; keeps [L, N, H] from forward to backward. `pairwise` without
      the lm_head_weight's gradient costs 4 N V H for any L.
    - `auto`: `pairwise` where there is a pair_loss and every pair fits into a chunk; else `frozen` where lm_head_weight has no gradient and L is
      1; else `recompute`.
    Where no gradient is asked for, they are one: 2 N V H, and on Triton no logits reach memory. With `pair_loss`, `pairwise` and `auto`
    wait once for a GPU, to learn how long the responses are.

    Large products run in the dtype of the lm_head_weight, everything else in fp32 (fp64); differentiable, once, in hidden, lm_head_weight and z. Two
    runs give the same bits. `torch.compile` takes the call into its graph (`fullgraph=True` too), but where `pair_loss` is given to `auto`
    or `pairwise`: that call it leaves as it is and compiles what is around it.

    Collectives on `tp_group` (all inputs but lm_head_weight and vocab_start the same on all its ranks), SUM all-reduces but for the first:
    an all-gather of 3 L numbers a row (4 L with entropy), in chunks; of the hidden gradient [N, H] ([L, N, H] with `frozen`), in chunks;
    of the z gradient [L, P, H] (none with `frozen`, nor for one latent with `pairwise` on a CPU). Each only if that gradient is asked
    for. So the gradients of hidden and z are complete on every rank (the caller must not reduce them again); that of lm_head_weight is local.

    Raises ValueError for shapes, dtypes and options that do not fit, RuntimeError for segment_ids not ascending or out of range.
    """
    problem = _problem(
        hidden,
        lm_head_weight,
        targets,
        segment_ids,
        num_segments,
        z,
        vocab_start,
        vocab_size,
        chunk_size,
        logit_softcap,
        temperature,
    )
    if problem is not None:
        raise ValueError(f"pair_logps: {problem}")
    _check_gradients(lm_head_weight, num_segments, z, pair_loss, algorithm, main_grad)
    columns = (
        lm_head_weight.size(0) if vocab_size is None else min(max(vocab_size - vocab_start, 0), lm_head_weight.size(0))
    )
    group = tp_group if tp_group is not None and tp_group.size() > 1 else None
    if group is None and columns == 0:
        raise ValueError(
            f"pair_logps: vocab_size ({vocab_size}) leaves no word of {lm_head_weight.size(0)} from vocab_start ({vocab_start}) on"
        )
    head = Head(vocab_start, columns, None if group is None else group.group_name, logit_softcap, temperature)
    latents = z[None] if z is not None and z.dim() == 2 else z
    runs = by_response(segment_ids, num_segments, num_segments if z is None else z.size(-2))
    wants_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (hidden, lm_head_weight, z)
    )
    chosen = _choose(algorithm, lm_head_weight, latents, runs, pair_loss, chunk_size) if wants_gradient else "none"
    loss: Tensor | None = None
    if chosen == "pairwise" and pair_loss is not None:
        if latents is not None and _adds_to_hidden(hidden, latents):
            hidden, latents = hidden + latents[0].to(hidden.dtype).index_select(0, segment_ids % latents.size(1)), None
        loss, token_logps, stats = Pairwise.apply(
            hidden, lm_head_weight, latents, targets, runs, head, chunk_size, with_entropy, main_grad, pair_loss
        )
    else:
        token_logps, stats, _ = token_logps_op(
            hidden,
            lm_head_weight,
            latents,
            targets,
            runs.edges,
            runs.pairs,
            main_grad,
            head.vocab_start,
            head.columns,
            head.group_name,
            head.softcap,
            head.temperature,
            chunk_size,
            with_entropy,
            chosen,
        )
    sums = runs.sums(token_logps)
    if loss is None and pair_loss is not None:
        pairs = num_segments // 2
        loss = summed_loss(pair_loss, sums.view(-1, 2, pairs), torch.arange(pairs, device=sums.device))

    def shaped(values: Tensor) -> Tensor:
        return values if z is not None and z.dim() == 3 else values[0]

    return PairLogps(
        logps=shaped(sums),
        token_logps=shaped(token_logps),
        log_sum_exp=shaped(log_sum_exp(stats)),
        entropy=shaped(entropy(stats)) if with_entropy else None,
        loss=loss,
    )


def _adds_to_hidden(hidden: Tensor, z: Tensor) -> bool:
    """Whether z is better added to hidden, in [N, H], than its product to logits, in [N, V]: one latent, where the logits take a pass more
    for it, where the sum is not rounded to bf16, and where it asks for no gradient of hidden that nobody wants."""
    return z.size(0) == 1 and (hidden.requires_grad or not z.requires_grad) and wide_in_pytorch(hidden)


def _choose(
    algorithm: Algorithm,
    lm_head_weight: Tensor,
    z: Tensor | None,
    runs: Runs,
    pair_loss: PairLoss | None,
    chunk_size: int,
) -> Algorithm:
    if algorithm != "auto":
        return algorithm
    if pair_loss is not None:
        lengths = torch.tensor(runs.host_edges).diff().view(2, -1).sum(0)
        if int(lengths.max()) <= chunk_size:
            return "pairwise"
    return "recompute" if lm_head_weight.requires_grad or (z is not None and z.size(0) > 1) else "frozen"


def _check_gradients(
    lm_head_weight: Tensor,
    num_segments: int,
    z: Tensor | None,
    pair_loss: PairLoss | None,
    algorithm: Algorithm,
    main_grad: Tensor | None,
) -> None:
    if algorithm not in ("auto", "recompute", "pairwise", "frozen"):
        raise ValueError(f"pair_logps: algorithm must be auto, recompute, pairwise or frozen, got {algorithm!r}")
    if pair_loss is None and algorithm == "pairwise":
        raise ValueError(
            "pair_logps: algorithm pairwise needs pair_loss, for the gradients to be made in the forward pass"
        )
    if algorithm == "frozen" and lm_head_weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "pair_logps: algorithm frozen makes no gradient of lm_head_weight, which requires one; use auto, recompute or pairwise"
        )
    if pair_loss is not None and (num_segments % 2 or (z is not None and z.size(-2) != num_segments // 2)):
        pairs = "" if z is None else f" and z {z.size(-2)} pairs"
        raise ValueError(f"pair_logps: pair_loss needs two responses a pair, but num_segments is {num_segments}{pairs}")
    if main_grad is not None:
        dtype = torch.promote_types(lm_head_weight.dtype, torch.float32)
        if main_grad.shape != lm_head_weight.shape or main_grad.dtype != dtype:
            raise ValueError(
                f"pair_logps: main_grad must be {list(lm_head_weight.shape)} {dtype}, got {list(main_grad.shape)} {main_grad.dtype}"
            )


def _problem(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    segment_ids: Tensor,
    num_segments: int,
    z: Tensor | None,
    vocab_start: int,
    vocab_size: int | None,
    chunk_size: int,
    logit_softcap: float | None,
    temperature: float,
) -> str | None:
    """What does not fit. Written out only where it does not: a size that `torch.compile` sees written out is a constant to it."""
    if hidden.dim() != 2:
        return f"hidden must be [N, H], got {list(hidden.shape)}"
    rows, width = hidden.shape
    if lm_head_weight.dim() != 2 or lm_head_weight.size(1) != width:
        return f"lm_head_weight must be [V_local, {width}] as hidden's width, got {list(lm_head_weight.shape)}"
    if lm_head_weight.dtype != hidden.dtype:
        return f"hidden and lm_head_weight must have one dtype, got {hidden.dtype} and {lm_head_weight.dtype}"
    if not hidden.is_floating_point():
        return f"hidden and lm_head_weight must be floating point, got {hidden.dtype}"
    for name, index in (("targets", targets), ("segment_ids", segment_ids)):
        if index.shape != (rows,) or index.dtype != torch.int64:
            return f"{name} must be [{rows}] int64, one for each row of hidden, got {list(index.shape)} {index.dtype}"
    if num_segments < 1:
        return f"num_segments must be at least 1, got {num_segments}"
    if z is not None:
        if z.dim() not in (2, 3) or z.size(-1) != width:
            return f"z must be [P, {width}] or [L, P, {width}], got {list(z.shape)}"
        if z.size(-2) < 1 or num_segments % z.size(-2):
            return f"num_segments ({num_segments}) must be a multiple of z's {z.size(-2)} pairs"
    if vocab_start < 0:
        return f"vocab_start must not be negative, got {vocab_start}"
    if vocab_size is not None and vocab_size < 1:
        return f"vocab_size must be at least 1, got {vocab_size}"
    if chunk_size < 1:
        return f"chunk_size must be at least 1, got {chunk_size}"
    if logit_softcap is not None and logit_softcap <= 0:
        return f"logit_softcap must be positive, got {logit_softcap}"
    if temperature <= 0:
        return f"temperature must be positive, got {temperature}"
    return None
