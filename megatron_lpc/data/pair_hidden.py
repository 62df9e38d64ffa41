"""All that scoring pairs needs of the backbone: its hidden states where the method looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairHidden:
    """Hidden states after the final norm of B pairs with N response tokens, in the dtype of the backbone."""

    loss_tokens: Tensor
    """[N, H] h_t at the positions that predict a response token, ordered as `PairBatch.loss_index`."""
    prompt_end: Tensor
    """[B, H] h_x: at the last token of each prompt."""
    response_end: Tensor
    """[2B, H] h_w and h_l: at the last token of each response, chosen first."""

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> PairHidden:
        """The same with `function` of each tensor in its place."""
        return PairHidden(
            loss_tokens=function(self.loss_tokens),
            prompt_end=function(self.prompt_end),
            response_end=function(self.response_end),
        )
