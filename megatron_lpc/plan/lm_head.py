"""Memory of the last stage while `pair_logps` multiplies loss tokens with the LM head; see docs/kernels.md.

Shape legend: N loss tokens of a micro-batch, V vocabulary of one rank, H hidden size, C tokens of a chunk, L latents, P
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from lpc_kernels.pair_logps.chunk_logits import CHUNK_SIZE, CHUNK_SIZE_ON_TRITON

from megatron_lpc.config import Config, padded_vocab_size
from megatron_lpc.losses import uses_reference
from megatron_lpc.plan.micro_batch import MicroBatch

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class LMHeadSizes:
    """What the memory depends on, on one rank."""

    loss_tokens: int
    """N."""
    tokens_of_pair: int
    """Loss tokens of a pair."""
    vocab: int
    """V."""
    hidden_size: int
    """H."""
    pairs: int
    """P."""
    latents: int
    """L; 0 without a latent."""
    chunk_size: int
    chunks_in_flight: int
    """2 with tensor parallelism, else 1."""
    itemsize: int
    adds_in_place: bool
    """Whether one latent is added to hidden states and not, as [L, P, V], to logits: fp32 without Triton."""
    algorithm: str
    """`pairwise`, `recompute` or, with a frozen backbone, `frozen`: the gradient of z alone."""
    is_tied: bool
    """Whether the rank's embedding is its LM head."""

    @property
    def chunk_tokens(self) -> int:
        """C: tokens of the largest chunk; chunks of `pairwise` are of whole pairs."""
        if self.algorithm == "recompute":
            return min(self.chunk_size, self.loss_tokens)
        whole_pairs = max(1, self.chunk_size // self.tokens_of_pair) * self.tokens_of_pair
        return min(whole_pairs, self.loss_tokens)


def lm_head_sizes(config: Config, batch: MicroBatch, device_type: str) -> LMHeadSizes:
    """Sizes of a run's last stage."""
    model, latent, parallel = config.model, config.latent, config.parallel
    assert model.vocab_size is not None
    on_cuda = device_type == "cuda"
    chunk_size = config.loss.logps_chunk_size or (CHUNK_SIZE_ON_TRITON if on_cuda else CHUNK_SIZE)
    latents = 0 if latent.latent_mode == "none" else 1
    if latents and latent.latent_inference == "exact":
        latents = latent.codebook_size
    if config.training.freeze_backbone and uses_reference(config.loss):
        latents += 1
    tensor = parallel.tensor_model_parallel_size
    return LMHeadSizes(
        loss_tokens=batch.loss_tokens,
        tokens_of_pair=2 * batch.lengths.response,
        vocab=padded_vocab_size(config, model.vocab_size) // tensor,
        hidden_size=model.hidden_size,
        pairs=batch.pairs,
        latents=latents,
        chunk_size=chunk_size,
        chunks_in_flight=2 if tensor > 1 else 1,
        itemsize=2 if config.training.bf16 else _FP32,
        adds_in_place=not on_cuda and not config.training.bf16,
        algorithm=_algorithm(config, 2 * batch.lengths.response <= chunk_size),
        is_tied=not model.untie_embeddings_and_output_weights and parallel.pipeline_model_parallel_size == 1,
    )


def _algorithm(config: Config, pairs_fit: bool) -> str:
    if config.training.freeze_backbone:
        return "frozen"
    if config.latent.latent_inference == "exact" and config.latent.posterior_context:
        return "recompute"
    chosen = config.loss.logps_algorithm
    return chosen if chosen != "auto" else ("pairwise" if pairs_fit else "recompute")


def logits_bytes(sizes: LMHeadSizes) -> int:
    """The chunks of logits that exist at one time: C V numbers each."""
    in_flight = 1 if sizes.algorithm == "recompute" else sizes.chunks_in_flight
    return in_flight * sizes.chunk_tokens * sizes.vocab * sizes.itemsize


def latents_bytes(sizes: LMHeadSizes) -> int:
    """z W^T and its gradient, fp32: 2 L P V numbers, where latents are not added to hidden states.

    Codes are shared by all pairs, so that P is 1 for them.
    """
    if sizes.latents == 0 or (sizes.latents == 1 and sizes.adds_in_place):
        return 0
    rows = sizes.latents if sizes.latents > 2 else sizes.latents * sizes.pairs
    return 2 * rows * sizes.vocab * _FP32


def scoring_workspace(sizes: LMHeadSizes) -> int:
    """Beside the activations, when log-probs and gradients are made.

    Hidden states of the loss tokens and their gradient, N H each; with `pairwise` also in the order of pairs; with a
    latent that is added to them once more.
    """
    per_token = sizes.hidden_size * sizes.itemsize
    copies = {"pairwise": 3, "recompute": 2, "frozen": 1}[sizes.algorithm]
    if sizes.latents == 1 and sizes.adds_in_place:
        copies += 1
    return copies * sizes.loss_tokens * per_token + logits_bytes(sizes) + latents_bytes(sizes)


def reference_workspace(sizes: LMHeadSizes, on_cuda: bool) -> int:
    """The same for log-probs alone. No logits reach memory on CUDA."""
    logits = 0 if on_cuda else logits_bytes(sizes)
    return sizes.loss_tokens * sizes.hidden_size * sizes.itemsize + logits


def gradient_workspace(sizes: LMHeadSizes, tokens: int) -> int:
    """Beside the activations, when the backward pass leaves `pair_logps`.

    Gradients of hidden states: N H, and S R H for each of the three places that the method reads, two at a time. And
    V H of the LM head: what autograd gets although the gradient is in its buffer already.

    Args:
        tokens: S R.
    """
    if sizes.algorithm == "frozen":
        return 0
    per_token = sizes.hidden_size * sizes.itemsize
    weight = 0 if sizes.is_tied else sizes.vocab * per_token
    return (sizes.loss_tokens + 2 * tokens) * per_token + weight


def embedding_workspace(sizes: LMHeadSizes) -> int:
    """Gradients of a stage's embedding before they are in their buffer, at the end of the backward pass: V H numbers.

    Twice where it is the LM head as well.
    """
    return (2 if sizes.is_tied else 1) * sizes.vocab * sizes.hidden_size * sizes.itemsize
