"""Summed log-probs of responses from hidden states, latents and the LM head, and the losses of their pairs.

The letters of shapes are listed in `problem.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.pair_logps.algorithms import ALGORITHMS, Algorithm, Chosen, Circumstances, choose_algorithm
from lpc_kernels.pair_logps.chunk_logits import default_chunk_size
from lpc_kernels.pair_logps.pairwise import evaluate_pair_loss
from lpc_kernels.pair_logps.problem import PairLoss, Problem, Scores
from lpc_kernels.pair_logps.segments import segments_in_response_order
from lpc_kernels.pair_logps.softmax_stats import entropy, log_sum_exp
from lpc_kernels.pair_logps.validation import Options, TensorArguments, check, check_vocabulary
from lpc_kernels.pair_logps.vocab_shard import VocabShard

P = ParamSpec("P")


@dataclass(frozen=True)
class PairLogps:
    """Result of `pair_logps`: fp32, or fp64 for fp64 inputs.

    S responses, N loss tokens; L latents come first where z is [L, P, H].
    """

    logps: Tensor
    """[S] or [L, S] log-probs summed over each response, 0 for an empty one. Differentiable except with algorithm
    `pairwise`."""
    token_logps: Tensor
    """[N] or [L, N] log-prob of each target; -inf for one outside of the vocabulary. Differentiable except with
    algorithm `pairwise`."""
    log_sum_exp: Tensor
    """[N] or [L, N] logarithm of the sum of exp(logit), without gradient."""
    entropy: Tensor | None
    """[N] or [L, N] entropy of the distribution over the vocabulary, nats, without gradient; None unless asked for."""
    loss: Tensor | None
    """Scalar: the pair losses, summed over pairs. Differentiable with every algorithm; None without `pair_loss`."""
    pair_losses: Tensor | None
    """[S / 2] the pair losses, without gradient; None without `pair_loss`."""


def _compiled_unless_pairwise(function: Callable[P, PairLogps]) -> Callable[P, PairLogps]:
    """Keeps `torch.compile` out of calls that evaluate a pair loss between chunks which depend on the data."""
    uncompiled = torch.compiler.disable(
        function, reason="pair_loss is called between chunks; algorithm='recompute' makes a whole graph"
    )

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> PairLogps:
        may_be_pairwise = options.get("algorithm", "auto") in ("auto", "pairwise")
        if may_be_pairwise and options.get("pair_loss") is not None:
            return uncompiled(*args, **options)
        return function(*args, **options)

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
    chunk_size: int | None = None,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    main_grad: Tensor | None = None,
    main_grad_only: bool = False,
) -> PairLogps:
    """Sum over each response of log softmax(cap(W (h_t + z)) / temperature)[target], with cap(x) = c tanh(x / c) or x.

    Large products run in the dtype of the LM head, everything else in fp32 (fp64). Differentiable, once, in hidden,
    lm_head_weight and z. Two runs give the same bits. `torch.compile` takes the call into its graph (`fullgraph=True`
    too), except where `pair_loss` is given to `auto` or `pairwise`: it then compiles only the code around the call.

    Algorithms, and their cost in large products (N V H multiplications and as many additions are 2 N V H):

    - `recompute` 8 N V H: backward makes the logits again, for any loss of what is returned.
    - `pairwise` 6 N V H, needs `pair_loss`: gradients are made in the forward pass, in chunks of whole pairs (a pair
      of more than `chunk_size` tokens is a chunk by itself); backward scales them, once. Only `loss` is
      differentiable. With `main_grad` the gradient is in the buffer after the forward pass, so the loss must enter the
      final loss with factor 1 (else RuntimeError). Without the LM head's gradient 4 N V H, and 2 N V H where only z
      wants one (a frozen model), for any L: the logits' gradients are summed over tokens before their product.
    - `frozen` (2 + 2 L) N V H, needs an LM head without gradient: any loss; keeps [L, N, H] from forward to backward.
    - `auto`: `pairwise` where there is a pair_loss and every pair fits into a chunk; else `frozen` where the LM head
      has no gradient, hidden has one and L is 1; else `recompute`. With `pair_loss`, `pairwise` and `auto` wait once
      for a GPU, to read how long the responses are. No other call waits.

    Where no gradient is asked for, they are all the same: 2 N V H, and on Triton no logits reach memory.

    Collectives on `tp_group` (all inputs but lm_head_weight and vocab_start the same on all its ranks): in chunks, an
    all-gather of 3 L numbers per token (4 L with entropy); in chunks, a SUM all-reduce of the hidden gradient [N, H]
    ([L, N, H] with `frozen`); a SUM all-reduce of the z gradient [L, P, H] (none with `frozen`, nor for one latent
    with `pairwise` on a CPU). A gradient's all-reduce runs only if that gradient is asked for. So the gradients of
    hidden and z are complete on every rank (the caller must not reduce them again); that of lm_head_weight is local.

    Args:
        hidden: [N, H], loss tokens only, response after response.
        lm_head_weight: [V_local, H], this rank's shard, from token id `vocab_start` on; the ranks' shards may differ
            in size.
        targets: [N] int64 token ids.
        segment_ids: [N] int64 response of each token, ascending, in [0, num_segments).
        num_segments: S, responses.
        z: [P, H], or [L, P, H] for L latents at the price of little more than one; response s belongs to pair s % P.
            [L, 1, H]: latents that all pairs share, such as the codes of a codebook, without a copy for each pair.
        pair_loss: from [L, 2, B] summed log-probs of B pairs (L = 1 unless z is [L, P, H]), chosen first, and the [B]
            int64 indices of the pairs, to the pairs' losses [B]; responses are then the chosen ones of all pairs and
            after them the rejected ones. It may be called several times, with some of the pairs each time, and only
            gradients through the log-probs come back: tensors that the function encloses get none.
        algorithm: see above.
        vocab_start: first token id of this rank's shard.
        vocab_size: token ids from this one on are padding and have no probability; None: no padding.
        tp_group: the ranks that hold the shards of the LM head.
        chunk_size: tokens whose logits are in memory at one time (twice as many with a `tp_group`, as communication is
            overlapped with the next chunk); changes results by rounding only. None: 4096 on Triton, else 1024.
        logit_softcap: c of cap(x) = c tanh(x / c).
        temperature: divides the logits.
        with_entropy: also return the entropy.
        main_grad: [V_local, H] fp32 (fp64) buffer, such as megatron-core's, that the gradient of lm_head_weight is
            added to; the gradient that autograd gets is then zero.
        main_grad_only: the gradient that autograd gets beside `main_grad` is read by nobody: it has no values then,
            and no time is spent on filling it with zeros.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
        RuntimeError: segment_ids not ascending or out of range.
    """
    tensors = TensorArguments(
        hidden=hidden,
        lm_head_weight=lm_head_weight,
        targets=targets,
        segment_ids=segment_ids,
        num_segments=num_segments,
        z=z,
        main_grad=main_grad,
        main_grad_only=main_grad_only,
    )
    options = Options(
        algorithm=algorithm,
        pair_loss=pair_loss,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        chunk_size=chunk_size,
        logit_softcap=logit_softcap,
        temperature=temperature,
    )
    check(tensors, options)
    problem = _problem(tensors, options, tp_group, with_entropy)
    chosen = _choose(algorithm, problem)
    scores = ALGORITHMS[chosen](problem)
    return _result(problem, scores, several_latents=z is not None and z.dim() == 3)


def _problem(
    tensors: TensorArguments, options: Options, tp_group: dist.ProcessGroup | None, with_entropy: bool
) -> Problem:
    """What is to be computed, from checked arguments. Raises ValueError for a single rank without vocabulary."""
    z = tensors.z
    vocab_local = tensors.lm_head_weight.size(0)
    if options.vocab_size is not None:
        vocab_local = min(max(options.vocab_size - options.vocab_start, 0), vocab_local)
    group = tp_group if tp_group is not None and tp_group.size() > 1 else None
    if group is None:
        check_vocabulary(vocab_local, tensors.lm_head_weight, options)
    z = _without_copies(z)
    num_pairs = tensors.num_segments if z is None else z.size(-2)
    return Problem(
        hidden=tensors.hidden,
        lm_head_weight=tensors.lm_head_weight,
        z=z[None] if z is not None and z.dim() == 2 else z,
        targets=tensors.targets,
        segments=segments_in_response_order(tensors.segment_ids, tensors.num_segments, num_pairs),
        shard=VocabShard(
            vocab_start=options.vocab_start,
            vocab_local=vocab_local,
            group_name=None if group is None else group.group_name,
            softcap=options.logit_softcap,
            temperature=options.temperature,
        ),
        chunk_size=options.chunk_size or default_chunk_size(tensors.hidden),
        with_entropy=with_entropy,
        main_grad=tensors.main_grad,
        main_grad_only=tensors.main_grad_only,
        pair_loss=options.pair_loss,
    )


def _without_copies(z: Tensor | None) -> Tensor | None:
    """[L, 1, H] of an expanded [L, P, H]. Not where it wants a gradient, which has a value for each pair."""
    if z is None or z.dim() == 2 or z.stride(1) or (z.requires_grad and torch.is_grad_enabled()):
        return z
    return z[:, :1]


def _choose(algorithm: Algorithm, problem: Problem) -> Chosen:
    inputs = (problem.hidden, problem.lm_head_weight, problem.z)
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    pairs_fit = False
    if wants_gradient and algorithm == "auto" and problem.pair_loss is not None:
        pairs_fit = max(problem.segments.pair_lengths) <= problem.chunk_size
    return choose_algorithm(
        algorithm,
        Circumstances(
            wants_gradient=wants_gradient,
            lm_head_trained=problem.lm_head_weight.requires_grad,
            hidden_trained=problem.hidden.requires_grad,
            num_latents=problem.num_latents,
            pairs_fit=pairs_fit,
        ),
    )


def _result(problem: Problem, scores: Scores, several_latents: bool) -> PairLogps:
    def shaped(values: Tensor) -> Tensor:
        return values if several_latents else values[0]

    logps = problem.segments.sums(scores.token_logps)
    loss, pair_losses = scores.loss, scores.pair_losses
    if loss is None and problem.pair_loss is not None:
        pairs = torch.arange(logps.size(1) // 2, device=logps.device)
        losses = evaluate_pair_loss(problem.pair_loss, logps.view(-1, 2, pairs.numel()), pairs)
        loss, pair_losses = losses.sum(), losses.detach()
    return PairLogps(
        logps=shaped(logps),
        token_logps=shaped(scores.token_logps),
        log_sum_exp=shaped(log_sum_exp(scores.stats)),
        entropy=shaped(entropy(scores.stats)) if problem.with_entropy else None,
        loss=loss,
        pair_losses=pair_losses,
    )
