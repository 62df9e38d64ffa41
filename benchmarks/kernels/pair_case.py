"""Sizes of a preference loss on top of an LM head, as `pair_logps` and others compute it, and its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megatron_lpc.command_line import UserError

MODELS = {
    "llama-3-8b": (4096, 128256),
    "llama-3-70b": (8192, 128256),
    "qwen-3-8b": (4096, 151936),
    "gemma-2-9b": (3584, 256000),
}
"""(hidden size H, vocabulary size V) from the models' config.json."""


@dataclass(frozen=True, kw_only=True)
class PairCase:
    """One size. Responses have equal lengths, the chosen ones of all pairs come first; some tokens carry no loss."""

    device: str
    dtype: torch.dtype
    model: str
    tokens: int
    """N: tokens with hidden states, masked ones among them."""
    response: int
    """Tokens of a response."""
    masked: float
    """Share of tokens that carry no loss."""
    latents: int
    """L: latents under which all tokens are scored."""
    tp: int
    """The head is the vocabulary shard of one rank of this many; nothing is communicated."""
    chunk_size: int | None
    """Of our algorithms; None: as `pair_logps` chooses."""
    direction: Literal["training", "scoring"]
    """training: forward, and the gradients of `trained`. scoring: forward without gradients."""
    trained: Literal["all", "z"] = "all"
    """all: hidden states, head and latents. z: the latents alone, as with a frozen model."""
    shared: bool = False
    """All pairs share the latents, as in exact inference over the codes."""

    @property
    def hidden_size(self) -> int:
        return _size(self.model)[0]

    @property
    def vocab_size(self) -> int:
        """Of the shard."""
        return _size(self.model)[1] // self.tp

    @property
    def pairs(self) -> int:
        return self.tokens // (2 * self.response)

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return round(self.tokens * (1 - self.masked))

    @property
    def flops(self) -> float:
        """Nominal work for the loss tokens and one latent: 6 N V H (scoring: 2 N V H), whatever a provider does."""
        factor = 6 if self.direction == "training" else 2
        return factor * self.loss_tokens * self.vocab_size * self.hidden_size

    @property
    def bytes(self) -> float | None:
        """None: the rate of these kernels is counted in FLOP."""
        return None

    def labels(self) -> dict[str, object]:
        """Columns of a report that tell cases apart."""
        return {
            "direction": self.direction,
            "model": self.model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "N": self.tokens,
            "H": self.hidden_size,
            "V": self.vocab_size,
            "tp": self.tp,
            "masked": self.masked,
            "L": self.latents,
            "trained": self.trained,
            "shared": self.shared,
        }

    def check(self) -> None:
        """Raises UserError for sizes that do not fit together."""
        _size(self.model)
        if self.response < 1 or self.tokens < 2 * self.response or self.tokens % (2 * self.response):
            raise UserError(
                f"--tokens {self.tokens} is not a whole number of pairs with {self.response} tokens per response; "
                "change --response"
            )
        if not 0 <= self.masked < 1:
            raise UserError(f"--masked must be in [0, 1), got {self.masked}")
        if self.latents < 1 or self.tp < 1 or self.vocab_size < 1:
            raise UserError(f"--latents and --tp must be at least 1, got {self.latents} and {self.tp}")


def _size(model: str) -> tuple[int, int]:
    """(hidden size, vocabulary size) of a model of `MODELS`, or of one written as both with an x between."""
    if model in MODELS:
        return MODELS[model]
    hidden_size, _, vocab_size = model.partition("x")
    numbers = hidden_size.isdecimal() and vocab_size.isdecimal()
    if numbers and int(hidden_size) > 0 and int(vocab_size) > 0:
        return int(hidden_size), int(vocab_size)
    raise UserError(f"--model must be one of {', '.join(MODELS)} or HIDDENxVOCABULARY such as 512x32000, got '{model}'")
