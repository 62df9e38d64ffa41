"""A micro-batch of preference pairs: what the data pipeline hands to the model.

Shape legend: B pairs, R sequences of S tokens, N response tokens. Responses are numbered chosen first: 0 … B-1 are the
chosen, B … 2B-1 the rejected ones. A flat index counts positions sequence after sequence: sequence * S + position.
Only the collator decides how pairs lie in sequences; the model reads only the indices below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_lpc.data.pair_hidden import PairHidden

PADDING = -3
"""Document of tokens that belong to no pair."""

_FLAT_INDICES = ("prompt_end", "response_end", "loss_index")


@dataclass(frozen=True)
class PackingLayout:
    """What each token of a batch belongs to, where a sequence holds more than one prompt or response."""

    stacked: Tensor
    """[2, R, S] int64: document ids and position ids in one tensor, which goes through megatron-core as an attention
    mask does."""
    cu_seqlens: Tensor | None = None
    """[D + 1] int32: where each of the D documents of a packed sequence begins, padding being one too, and where the
    last ends. None where there are several sequences, or prompts are shared."""
    max_seqlen: int | None = None
    """Tokens of the longest of these documents, padding included. Known on the host without waiting for the device."""

    @classmethod
    def of(cls, document_ids: Tensor, position_ids: Tensor) -> PackingLayout:
        """The layout of ids [R, S] on the CPU."""
        stacked = torch.stack((document_ids, position_ids))
        is_shared_prompt = (document_ids >= 0) & (document_ids % 3 == 0)
        if document_ids.size(0) != 1 or is_shared_prompt.any():
            return cls(stacked)
        _, lengths = document_ids[0].unique_consecutive(return_counts=True)
        cu_seqlens = pad(lengths.cumsum(0), (1, 0)).int()
        return cls(stacked, cu_seqlens, max_seqlen=int(lengths.max()))

    @property
    def document_ids(self) -> Tensor:
        """[R, S] int64: 3 p is the shared prompt of the p-th pair, 3 p + 1 and 3 p + 2 its chosen and rejected response
        (each with a prompt of its own, where prompts are not shared), -3 padding.

        A token sees the earlier ones of its own document and of its pair's shared prompt.
        """
        return self.stacked[0]

    @property
    def position_ids(self) -> Tensor:
        """[R, S] int64: rotary positions."""
        return self.stacked[1]

    def is_shared_prompt(self, flat_index: Tensor) -> Tensor:
        """[B] bool: whether the tokens at [B] flat indices, none of them padding, are of a prompt that both responses
        of its pair share.
        """
        return self.document_ids.flatten()[flat_index] % 3 == 0

    def padded_to(self, seq_len: int) -> PackingLayout:
        """The same layout of sequences of `seq_len` >= S tokens, padded on the right; on the CPU."""
        extra = seq_len - self.stacked.size(2)
        document_ids = pad(self.document_ids, (0, extra), value=PADDING)
        position_ids = pad(self.position_ids, (0, extra), value=0)
        return PackingLayout.of(document_ids, position_ids)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> PackingLayout:
        """The same layout with `function` of each tensor in its place."""
        cu_seqlens = None if self.cu_seqlens is None else function(self.cu_seqlens)
        return PackingLayout(function(self.stacked), cu_seqlens, self.max_seqlen)


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Tokens of B pairs and where in them the method looks. All integer tensors are int64."""

    tokens: Tensor
    """[R, S] token ids, padded on the right."""
    packing_layout: PackingLayout | None = None
    """Where sequences are packed or share a prompt; None: one prompt and response per sequence, with plain causal
    attention."""
    prompt_end: Tensor
    """[B] flat index of the last prompt token: h_x."""
    response_end: Tensor
    """[2B] flat index of the last response token: h_w, h_l."""
    loss_index: Tensor
    """[N] flat indices of the positions that predict a response token, response after response."""
    targets: Tensor
    """[N] the response token that each of them predicts."""
    segment_ids: Tensor
    """[N] number of the response (0 … 2B-1), ascending."""
    response_length: Tensor
    """[2B] response tokens."""
    sample_ids: Tensor
    """[B] number of the pair among all training samples, over all epochs: the counter of its noise."""
    example_index: Tensor
    """[B] number of the pair in the data set: the key of its reference log-probs. Always on the host, for whoever looks
    them up would wait for the device."""
    group_ids: Tensor | None = None
    """[B] number of the pair's group among the known ones, from 1; 0: unknown. None where the model reads no groups."""
    reference_logps: Tensor | None = None
    """[2B] fp32 summed reference log-probs; None where they are not needed or not yet known."""
    mixture: Tensor | None = None
    """[B, K] fp32 code weights imposed from outside (support evaluation), or what stands for them in another mode:
    [B, H] the vectors of groups, [B, d] Gaussian latents. W of them at once are [W, B, K], or [W, 1, K] where all pairs
    share them. None where the model chooses."""
    hidden: PairHidden | None = None
    """Hidden states of a frozen backbone that were kept; None where the backbone computes them."""

    @property
    def num_pairs(self) -> int:
        return self.prompt_end.numel()

    def padded_to(self, seq_len: int, pad_id: int) -> PairBatch:
        """The same pairs in sequences of `seq_len` >= S tokens, padded on the right.

        A pipeline schedule may need one shape for all micro-batches of a step.

        Raises:
            ValueError: `seq_len` is below S.
        """
        old_seq_len = self.tokens.size(1)
        extra = seq_len - old_seq_len
        if extra < 0:
            raise ValueError(f"sequences of {old_seq_len} tokens cannot be padded to {seq_len}")
        changes: dict[str, Any] = {"tokens": pad(self.tokens, (0, extra), value=pad_id)}
        if self.packing_layout is not None:
            changes["packing_layout"] = self.packing_layout.padded_to(seq_len)
        for name in _FLAT_INDICES:
            flat_index = getattr(self, name)
            sequence = flat_index // old_seq_len
            changes[name] = flat_index + sequence * extra
        return replace(self, **changes)

    def pinned(self) -> PairBatch:
        """The same batch in pinned memory, from which `to` copies without waiting."""
        return self._map_tensors(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on `device`, but for `example_index`; copies from pinned memory do not block."""
        on_device = self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(on_device, example_index=self.example_index)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> PairBatch:
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = function(value)
            elif isinstance(value, (PackingLayout, PairHidden)):
                changes[field.name] = value.map_tensors(function)
        return replace(self, **changes)
