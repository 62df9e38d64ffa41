"""megatron-core's GPT with the LPC head between its last hidden states and the LM head.

Shape legend: B pairs, R sequences of S tokens, H hidden size, V vocabulary size, N loss tokens, L latents.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lpc_kernels import pair_logps
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from megatron_lpc.data.batch import PackingLayout, PairBatch
from megatron_lpc.data.pair_hidden import PairHidden
from megatron_lpc.model.build_head import AnyHead
from megatron_lpc.model.gather_hidden import hidden_of_pairs
from megatron_lpc.model.latent_output import LatentOutput
from megatron_lpc.model.lm_head import LMHead, main_grad_of
from megatron_lpc.model.local_rotary import both_angles
from megatron_lpc.model.packing_masks import packed_seq_params
from megatron_lpc.model.pair_scores import LatentQuery, PairScores


class PreferenceModel(GPTModel):
    """GPT that scores preference pairs.

    Earlier pipeline stages return hidden states [S, R, H] as any GPT does, or shards [S / tp, R, H] of them under
    sequence parallelism.
    """

    def __init__(
        self,
        *args: Any,
        real_vocab_size: int,
        logps_chunk_size: int | None,
        embedding_scale: float | None = None,
        logit_softcap: float | None = None,
        local_rotary_base: float | None = None,
        packs_sequences: bool = False,
        latent_head: Callable[[], AnyHead | None],
        **kwargs: Any,
    ) -> None:
        """As `GPTModel`, whose arguments the others are.

        Args:
            real_vocab_size: vocabulary size without padding.
            logps_chunk_size: loss tokens whose logits exist at one time; None: as `pair_logps` chooses.
            embedding_scale: factor of the input embeddings, rounded to their dtype as Gemma does.
            logit_softcap: c of the soft cap c tanh(x / c) on the logits.
            local_rotary_base: rotary base in layers with a sliding window, where it differs.
            packs_sequences: the layers are TransformerEngine's, which take packed sequences as `PackedSeqParams` and
                not as `PairBatch.packing_layout`.
            latent_head: makes the head; called only on the last stage.
        """
        super().__init__(*args, **kwargs)
        self.real_vocab_size = real_vocab_size
        self.logps_chunk_size = logps_chunk_size
        self.logit_softcap = logit_softcap
        self.packs_sequences = packs_sequences
        self.local_rotary = None if local_rotary_base is None else self._rotary(local_rotary_base)
        if self.post_process:
            self.output_layer.__class__ = LMHead  # GPTModel makes a ColumnParallelLinear and takes no other class.
        self.latent_head = latent_head() if self.post_process else None
        self.backbone_is_frozen = False
        if embedding_scale is not None and self.pre_process:
            self.embedding.register_forward_hook(
                lambda module, args, output: output * torch.tensor(embedding_scale, dtype=output.dtype)
            )

    def forward(self, batch: PairBatch, query: LatentQuery) -> Tensor | PairScores:
        """One backbone pass over a micro-batch, and on the last stage the scores of its pairs.

        Collectives on the tensor parallel group: those of the layers, of `hidden_of_pairs` and of `score`.

        A frozen backbone leaves no graph of autograd, and does not run where the batch has its hidden states.
        """
        if batch.hidden is not None:
            return self.score(batch.hidden, batch, query)
        with self._backbone_gradients():
            hidden = self.hidden_states(batch.tokens, batch.packing_layout)
            if not self.post_process:
                return hidden
            of_pairs = hidden_of_pairs(hidden, batch, self._sequence_shards())
        return self.score(of_pairs, batch, query)

    def pair_hidden(self, batch: PairBatch) -> PairHidden:
        """What `score` needs of a micro-batch, where this stage is the only one. Collectives: as `forward`."""
        return hidden_of_pairs(self.hidden_states(batch.tokens, batch.packing_layout), batch, self._sequence_shards())

    def _sequence_shards(self) -> dist.ProcessGroup | None:
        return self.pg_collection.tp if self.config.sequence_parallel else None

    def freeze_backbone(self) -> None:
        """From now on only the LPC head, where this stage has it, requires gradients."""
        self.requires_grad_(False)
        if self.latent_head is not None:
            self.latent_head.requires_grad_(True)
        self.backbone_is_frozen = True

    def parameters_of_layers(self) -> list[nn.Parameter]:
        """Weights that only a forward pass reads, and `score` does not; for the last stage."""
        scoring = [self.lm_head_weight(), *([] if self.latent_head is None else self.latent_head.parameters())]
        known = {id(parameter) for parameter in scoring}
        return [parameter for parameter in self.parameters() if id(parameter) not in known]

    def _backbone_gradients(self) -> AbstractContextManager[Any]:
        # Frozen weights alone would not do: hidden states that come from another stage require gradients.
        return torch.no_grad() if self.backbone_is_frozen else nullcontext()

    def hidden_states(self, tokens: Tensor, packing_layout: PackingLayout | None = None) -> Tensor:
        """This stage's last hidden states [S, R, H], on the last stage after the final norm.

        Args:
            tokens: [R, S].
            packing_layout: as in `PairBatch`; None: one document per sequence.
        """
        if packing_layout is None:
            return super().forward(tokens, None, None)
        if self.packs_sequences:
            return super().forward(tokens, None, None, packed_seq_params=packed_seq_params(packing_layout))
        return super().forward(tokens, packing_layout.position_ids, packing_layout.stacked)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor | None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Called by `GPTModel.forward`: rotate each token by its own position.

        megatron-core's angles [S, 1, 1, D] follow the place in the sequence; with position ids they become [S, R, 1,
        D], and with a local rotary base both tables.
        """
        embedded, angles, *rest = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        if embedded is not None:
            # Canonical strides for a single sequence too. With others torch.matmul chooses another kernel where the
            # weight is frozen, and a fresh policy would differ from its reference in the last bit.
            embedded = embedded.reshape(-1, embedded.size(-1)).view(embedded.shape)
        local = None if self.local_rotary is None else self.local_rotary(angles.size(0))
        if position_ids is not None:
            angles = angles[:, 0][position_ids.t()]
            local = None if local is None else local[:, 0][position_ids.t()]
        return embedded, angles if local is None else both_angles(angles, local), *rest

    def _rotary(self, base: float) -> RotaryEmbedding:
        """Angles of another base, without scaling."""
        return RotaryEmbedding(
            self.config.kv_channels,
            self.rotary_percent,
            rotary_base=base,
            use_cpu_initialization=self.config.use_cpu_initialization,
            cp_group=self.pg_collection.cp,
        )

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Called by `GPTModel.forward`: return the hidden states, where core would multiply all with the LM head."""
        return hidden_states

    def lm_head_weight(self) -> Tensor:
        """[V / tp, H] weight of the LM head, vocabulary padding included; for the last stage."""
        if self.share_embeddings_and_output_weights and self.pre_process:
            # The embedding's, which this forward pass has called.
            return self.shared_embedding_or_output_weight()
        return self.output_layer()

    def cap(self, logits: Tensor) -> Tensor:
        """Logits under the model's soft cap, where it has one."""
        return logits if self.logit_softcap is None else self.logit_softcap * torch.tanh(logits / self.logit_softcap)

    def score(self, hidden: PairHidden, batch: PairBatch, query: LatentQuery) -> PairScores:
        """log pi(y_t | x, y_<t, z) = log softmax(W (h_t + z))[y_t], summed over each response.

        Collectives on the tensor parallel group: those of `pair_logps`, which returns the whole gradient of its inputs
        to every rank.
        """
        latent = self._latent(hidden, batch, query)
        weight = self.lm_head_weight()
        main_grad = main_grad_of(weight)
        result = pair_logps(
            hidden.loss_tokens,
            weight,
            batch.targets,
            batch.segment_ids,
            2 * batch.num_pairs,
            z=None if latent is None else latent.z,
            pair_loss=None if query.make_pair_loss is None else query.make_pair_loss(batch, latent),
            algorithm=query.algorithm,
            vocab_start=weight.size(0) * self.pg_collection.tp.rank(),
            vocab_size=self.real_vocab_size,
            logit_softcap=self.logit_softcap,
            tp_group=self.pg_collection.tp,
            chunk_size=self.logps_chunk_size,
            main_grad=main_grad,
            main_grad_only=main_grad is not None and not getattr(weight, "zero_out_wgrad", False),
        )
        return PairScores(
            logps=result.logps.view(-1, 2 * batch.num_pairs),
            latent=latent,
            loss=result.loss,
            pair_losses=result.pair_losses,
            hidden=hidden if query.keeps_hidden else None,
        )

    def _latent(self, hidden: PairHidden, batch: PairBatch, query: LatentQuery) -> LatentOutput | None:
        """The head's output for the summaries h_x, h_w and h_l; None for the plain algorithm."""
        if self.latent_head is None:
            return None
        h_w, h_l = hidden.response_end.chunk(2)
        return self.latent_head(
            hidden.prompt_end, h_w, h_l, batch.sample_ids, query.state, query.sources, batch.mixture, batch.group_ids
        )
