"""A micro-batch of preference pairs: what the data pipeline hands to the model.

Shape legend: B pairs, R rows of S tokens, N response tokens. Responses are numbered chosen first: 0 … B-1 are the chosen,
B … 2B-1 the rejected ones. A flat index counts positions row by row: row * S + column.
How pairs lie in sequences is the collator's business alone; the model reads only the indices below.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = -3
"""Document of tokens that belong to no pair."""
_FLAT = ("prompt_end", "response_end", "loss_index")


@dataclass(frozen=True)
class PackingLayout:
    """What each token of a batch belongs to, where a sequence holds more than one prompt or response."""

    stacked: Tensor
    """[2, R, S] int64: document ids and position ids in one tensor, which goes through megatron-core as an attention mask does."""

    @property
    def document_ids(self) -> Tensor:
        """[R, S]: 3 p is the shared prompt of the p-th pair, 3 p + 1 and 3 p + 2 its chosen and rejected response (each with a prompt of
        its own, if that is not shared), -3 padding. A token sees the earlier ones of its own document and of its pair's shared prompt."""
        return self.stacked[0]

    @property
    def position_ids(self) -> Tensor:
        """[R, S]: rotary positions."""
        return self.stacked[1]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Tokens of B pairs and where in them the method looks. All integer tensors are int64."""

    tokens: Tensor
    """[R, S] token ids, padded on the right."""
    packing_layout: PackingLayout | None = None
    """Where sequences are packed or share a prompt; None: one prompt and response per sequence, with plain causal attention."""
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
    """[B] place of the pair in the endless stream of training samples: the counter of its noise."""
    example_index: Tensor
    """[B] row of the pair in the data set: the key of its reference log-probs."""
    reference_logps: Tensor | None = None
    """[2B] fp32 summed reference log-probs; None where they are not needed or not yet known."""
    mixture: Tensor | None = None
    """[B, K] fp32 code weights imposed from outside (support evaluation); None where the model chooses."""

    @property
    def num_pairs(self) -> int:
        return self.prompt_end.numel()

    def padded_to(self, width: int, pad_id: int) -> PairBatch:
        """The same pairs in rows of `width` >= S tokens, for a pipeline that wants one shape for all micro-batches of a step."""
        length, extra = self.tokens.size(1), width - self.tokens.size(1)
        if extra < 0:
            raise ValueError(f"rows of {length} tokens cannot become rows of {width}")
        moved: dict[str, Any] = {name: (index := getattr(self, name)) + index // length * extra for name in _FLAT}
        layout = self.packing_layout
        if layout is not None:
            document_ids = pad(layout.document_ids, (0, extra), value=PADDING)
            layout = PackingLayout(torch.stack((document_ids, pad(layout.position_ids, (0, extra)))))
        return replace(self, tokens=pad(self.tokens, (0, extra), value=pad_id), packing_layout=layout, **moved)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on `device`; copies from pinned memory do not block."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        if self.packing_layout is not None:
            moved["packing_layout"] = PackingLayout(self.packing_layout.stacked.to(device, non_blocking=True))
        return replace(self, **moved)
