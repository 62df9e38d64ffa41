"""A preference loss on top of an LM head, as `pair_logps` and others compute it: sizes, inputs, and the work that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MODELS = {
    "llama-3-8b": (4096, 128256),
    "llama-3-70b": (8192, 128256),
    "qwen-3-8b": (4096, 151936),
    "gemma-2-9b": (3584, 256000),
}
"""(hidden size H, vocabulary V) from the models' config.json."""
BETA = 0.1


@dataclass(frozen=True, kw_only=True)
class PairCase:
    """One size. Responses are all of one length, the chosen ones of all pairs first; some rows of each call carry no loss."""

    device: str
    dtype: torch.dtype
    model: str
    rows: int
    """N: rows of hidden states, masked ones among them."""
    response: int
    """Rows of a response."""
    masked: float
    """Share of rows that carry no loss."""
    latents: int
    """L: latents that all rows are judged under."""
    tp: int
    """The head is one rank's shard of this many; nothing is communicated."""
    chunk_size: int
    direction: Literal["training", "scoring"]
    """training: forward, and gradients of hidden states, head and latents. scoring: forward without gradients."""

    @property
    def width(self) -> int:
        return _size(self.model)[0]

    @property
    def words(self) -> int:
        """Of the shard."""
        return _size(self.model)[1] // self.tp

    @property
    def pairs(self) -> int:
        return self.rows // (2 * self.response)

    @property
    def flops(self) -> float:
        """Nominal work: 6 N V H (scoring: 2 N V H) for the rows with loss and one latent, whatever a provider really does."""
        return (
            (6 if self.direction == "training" else 2) * round(self.rows * (1 - self.masked)) * self.words * self.width
        )

    @property
    def bytes(self) -> float | None:
        return None

    def labels(self) -> dict[str, object]:
        """Columns of a report that tell cases apart."""
        return {
            "direction": self.direction,
            "model": self.model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "N": self.rows,
            "H": self.width,
            "V": self.words,
            "tp": self.tp,
            "masked": self.masked,
            "L": self.latents,
        }

    def check(self) -> None:
        """Raises ValueError for sizes that do not fit together."""
        _size(self.model)
        if self.response < 1 or self.rows < 2 * self.response or self.rows % (2 * self.response):
            raise ValueError(
                f"{self.rows} rows are not a whole number of pairs of {self.response} rows a response; change --response"
            )
        if not 0 <= self.masked < 1:
            raise ValueError(f"--masked must be in [0, 1), got {self.masked}")
        if self.latents < 1 or self.tp < 1 or self.words < 1:
            raise ValueError(f"--latents and --tp must be at least 1, got {self.latents} and {self.tp}")


@dataclass(frozen=True)
class PairInputs:
    """Tensors of a case; the masked rows are an exact share of all, at random places."""

    hidden: Tensor
    """[N, H]"""
    weight: Tensor
    """[V, H], with logits of variance about 1."""
    z: Tensor
    """[L, P, H]"""
    targets: Tensor
    """[N] int64"""
    segments: Tensor
    """[N] int64 response of each row."""
    real: Tensor
    """[N] bool: the row carries loss."""

    @property
    def labels(self) -> Tensor:
        """[N] targets as cross-entropy functions want them: -100 where there is no loss."""
        return self.targets.where(self.real, -100)

    def loss(self, token_logps: Tensor) -> Tensor:
        """Scalar: DPO with a reference of log-prob 0, averaged over pairs and summed over latents, from [L, N] log-probs."""
        sums = (token_logps * self.real).view(token_logps.size(0), 2, self.z.size(1), -1).sum(-1)
        return -logsigmoid(BETA * (sums[:, 0] - sums[:, 1])).mean(-1).sum()

    def shifted(self, latent: int) -> Tensor:
        """[N, H] hidden states with a latent added."""
        return self.hidden + self.z[latent].repeat(2, 1).repeat_interleave(
            self.hidden.size(0) // (2 * self.z.size(1)), 0
        )


def draw(case: PairCase, *, train_head: bool = True) -> PairInputs:
    """Inputs of the case, the same for the same case, that want gradients if it is of training."""
    generator = torch.Generator(case.device).manual_seed(0)
    training = case.direction == "training"

    def normal(*shape: int, gradient: bool = training) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=case.dtype, device=case.device).requires_grad_(gradient)

    hidden, z = normal(case.rows, case.width), normal(case.latents, case.pairs, case.width)
    weight = (
        normal(case.words, case.width, gradient=False).mul_(case.width**-0.5).requires_grad_(training and train_head)
    )
    row = torch.arange(case.rows, device=case.device)
    real = torch.randperm(case.rows, generator=generator, device=case.device) >= round(case.rows * case.masked)
    targets = torch.randint(0, case.words, (case.rows,), generator=generator, device=case.device)
    return PairInputs(hidden, weight, z, targets, row // case.response, real)


def _size(model: str) -> tuple[int, int]:
    if model in MODELS:
        return MODELS[model]
    width, _, words = model.partition("x")
    if width.isdecimal() and words.isdecimal() and int(width) > 0 and int(words) > 0:
        return int(width), int(words)
    raise ValueError(
        f"--model must be one of {', '.join(MODELS)} or HIDDENxVOCABULARY such as 512x32000, got '{model}'"
    )
