"""megatron-core's GPT with the LPC head between its last hidden states and the LM head.

Shape legend: B pairs, R rows of S tokens, H hidden size, V vocabulary, N response tokens, L latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lpc_kernels import Algorithm, PairLoss, pair_logps
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_lpc.data.batch import PackingLayout, PairBatch
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.latent_head import ContinuousHead, LatentHead, LatentOutput, LatentSource
from megatron_lpc.model.pair_mask import packed_sequences


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What the last pipeline stage says of B pairs."""

    logps: Tensor
    """[L, 2B] fp32 summed response log-probs, chosen first, one row per requested latent."""
    latent: LatentOutput | None
    """None for the plain algorithm."""
    loss: Tensor | None = None
    """Scalar fp32: the query's `pair_loss` summed over the pairs. With it, gradients may come by way of this alone and not of `logps`."""

    @property
    def device(self) -> torch.device:
        """Where megatron-core's schedules put a scale for the losses of experts; they take what a stage gives for a tensor."""
        return self.logps.device


@dataclass(frozen=True, kw_only=True)
class LatentQuery:
    """Under which latents a micro-batch is scored, and by which loss its pairs are judged at once."""

    sources: tuple[LatentSource, ...]
    state: LatentState
    pair_loss: Callable[[PairBatch], PairLoss] | None = None
    """Known when the logits are, it saves making them again for the gradients; None: scores alone."""
    algorithm: Algorithm = "auto"
    """Of `pair_logps`."""


class PreferenceModel(GPTModel):
    """GPT that scores preference pairs.

    Earlier pipeline stages return hidden states [S, R, H] (sequence shards [S/tp, R, H] under sequence parallelism) as any GPT does.
    """

    def __init__(
        self,
        *args: Any,
        real_vocab_size: int,
        logps_chunk_size: int,
        embedding_scale: float | None = None,
        packs_sequences: bool = False,
        latent_head: Callable[[], LatentHead | ContinuousHead | None],
        **kwargs: Any,
    ) -> None:
        """As `GPTModel`.

        Args:
            real_vocab_size: words of the vocabulary, without its padding.
            logps_chunk_size: rows whose logits exist at one time.
            embedding_scale: factor of the input embeddings, rounded to their dtype as Gemma does.
            packs_sequences: the layers take several sequences in a row as TransformerEngine does, not by `PairBatch.packing_layout`.
            latent_head: makes the head; called on the last stage alone.
        """
        super().__init__(*args, **kwargs)
        self.real_vocab_size, self.logps_chunk_size = real_vocab_size, logps_chunk_size
        self.packs_sequences = packs_sequences
        self.latent_head = latent_head() if self.post_process else None
        if embedding_scale is not None and self.pre_process:
            self.embedding.register_forward_hook(
                lambda module, args, output: output * torch.tensor(embedding_scale, dtype=output.dtype)
            )

    def forward(self, batch: PairBatch, query: LatentQuery) -> Tensor | PairScores:
        """One backbone pass over a micro-batch, and on the last stage the scores of its pairs."""
        hidden = self.hidden_states(batch.tokens, batch.packing_layout)
        return self.score(hidden, batch, query) if self.post_process else hidden

    def hidden_states(self, tokens: Tensor, packing_layout: PackingLayout | None = None) -> Tensor:
        """This stage's last hidden states [S, R, H], on the last stage after the final norm.

        Args:
            tokens: [R, S].
            packing_layout: as in `PairBatch`; None: one sequence a row.
        """
        if packing_layout is None:
            return super().forward(tokens, None, None)
        if self.packs_sequences:
            return super().forward(tokens, None, None, packed_seq_params=packed_sequences(packing_layout.stacked))
        return super().forward(tokens, packing_layout.position_ids, packing_layout.stacked)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor | None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Called by `GPTModel.forward`: rotate each token by its own position, where megatron-core's angles [S, 1, 1, D] go by column."""
        embedded, angles, *rest = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        if embedded is not None:
            # Canonical strides for a single row too: with others torch.matmul takes a way of its own where the weight is frozen, and
            # a fresh policy would differ from its reference in the last bit.
            embedded = embedded.reshape(-1, embedded.size(-1)).view(embedded.shape)
        if position_ids is not None:
            angles = angles[:, 0][position_ids.t()]
        return embedded, angles, *rest

    def output_weight(self) -> Tensor:
        """[V / tp, H] weight of the LM head, padded words included; for the last stage."""
        return (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Called by `GPTModel.forward`: hand the hidden states on instead of multiplying all of them with the LM head."""
        return hidden_states

    def score(self, hidden: Tensor, batch: PairBatch, query: LatentQuery) -> PairScores:
        """log pi(y_t | x, y_<t, z) = log softmax(W (h_t + z))[y_t], summed over each response.

        Collectives on the tensor parallel group: an all-gather of the sequence shards (backward: each rank keeps its slice), and those
        of `pair_logps`, which returns the whole gradient of its inputs to every rank.
        """
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        length, rows, width = hidden.shape
        flat = hidden.reshape(length * rows, width)

        def at(index: Tensor) -> Tensor:
            """Hidden states at flat indices row * S + column; megatron-core keeps the sequence first."""
            return flat[index % length * rows + index // length]

        latent = None
        if self.latent_head is not None:
            h_w, h_l = at(batch.response_end).chunk(2)
            latent = self.latent_head(
                at(batch.prompt_end), h_w, h_l, batch.sample_ids, query.state, query.sources, batch.mixture
            )
        weight = self.output_weight()
        result = pair_logps(
            at(batch.loss_index),
            weight,
            batch.targets,
            batch.segment_ids,
            2 * batch.num_pairs,
            z=None if latent is None else latent.z,
            pair_loss=None if query.pair_loss is None else query.pair_loss(batch),
            algorithm=query.algorithm,
            vocab_start=weight.size(0) * self.pg_collection.tp.rank(),
            vocab_size=self.real_vocab_size,
            tp_group=self.pg_collection.tp,
            chunk_size=self.logps_chunk_size,
            main_grad=_main_grad(weight),
        )
        return PairScores(logps=result.logps.view(-1, 2 * batch.num_pairs), latent=latent, loss=result.loss)


def _main_grad(weight: Tensor) -> Tensor | None:
    """megatron-core's fp32 gradient buffer of a weight, where there is one and a gradient is made.

    Its data parallel wrapper is told not to add what autograd hands it, as by core's own fused linear layer. Where the weight is also the
    embedding on this stage, core has set `zero_out_wgrad` and the wrapper adds it nevertheless: the embedding's share beside our zeros.
    """
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    if main_grad is None or not (weight.requires_grad and torch.is_grad_enabled()):
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return main_grad
