"""Whether two models are one: every tensor, and the logits of real tokens. Judged by the largest difference, never by agreement of the
most probable word, which survives a wrong norm or a wrong rotary scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.opened import OpenedModel
from megatron_lpc.convert.output import transfer_bar

TEXTS = (
    "The",
    "Two people may prefer different answers to one question, and both be right.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Der Vogel singt; the bird sings; el pájaro canta. 3 + 4 = 7, 1999-12-31, $5.00. " * 8,
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Largest absolute differences, in fp32."""

    tensors: dict[str, float]
    """Tensor under its Hugging Face name -> difference; those of both."""
    one_sided: list[str]
    """Tensors that only one of the two has."""
    logits: list[tuple[int, float]]
    """Number of tokens -> difference, for each text."""
    words: str
    """What the tokens were."""

    @property
    def largest(self) -> float:
        return max([*self.tensors.values(), *(difference for _, difference in self.logits)], default=0.0)

    def agrees(self, tolerance: float) -> bool:
        return not self.one_sided and self.largest <= tolerance


def verify(first: OpenedModel, second: OpenedModel, texts: Sequence[str] = TEXTS) -> Comparison:
    """Compare two models. Memory: one of them in fp32 at a time, for its logits.

    Raises:
        ConversionError: their vocabularies or tensors have other shapes, so that nothing can be compared.
    """
    tokens, words = _tokens(first, second, texts)
    nbytes = sum(info.nbytes for info in first.stored.values())
    with transfer_bar("Comparing tensors", nbytes) as bar:
        left, right = _names(first), _names(second)
        differences = {}
        for (name, one), (_, other) in zip(_tensors(first, left & right), _tensors(second, left & right), strict=True):
            if one.shape != other.shape:
                raise ConversionError(f"{name} has shape {list(one.shape)} in one and {list(other.shape)} in the other")
            differences[name] = float((one.float() - other.float()).abs().max())
            bar.advance(bar.task_ids[0], one.nbytes)
    logits = [
        (one.size(1), float((one - other).abs().max()))
        for one, other in zip(first.logits(tokens), second.logits(tokens), strict=True)
    ]
    return Comparison(tensors=differences, one_sided=sorted(left ^ right), logits=logits, words=words)


def comparison_table(comparison: Comparison, rows: int = 10) -> Table:
    """The tensors that differ most, and the logits of every text."""
    table = Table(title=f"Largest differences (logits of {comparison.words})", title_justify="left")
    table.add_column("tensor or text")
    table.add_column("largest difference", justify="right")
    table.add_column("tensors", justify="right")
    worst = sorted(comparison.tensors.items(), key=lambda item: -item[1])
    differing = [item for item in worst if item[1] != 0]
    for name, difference in differing[:rows]:
        table.add_row(name, f"{difference:.3g}")
    if rest := differing[rows:]:
        table.add_row("others that differ", f"at most {rest[0][1]:.3g}", str(len(rest)))
    table.add_row("equal to the last bit", "0", str(len(worst) - len(differing)))
    for name in comparison.one_sided:
        table.add_row(name, "in one only")
    for length, difference in comparison.logits:
        table.add_row(f"logits of {length} tokens", f"{difference:.3g}")
    return table


def _names(model: OpenedModel) -> set[str]:
    return {name for group in model.groups for name in group.tensors}


def _tensors(model: OpenedModel, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """In the order of the forward pass, the same in both formats."""
    for group in model.groups:
        if names.isdisjoint(group.tensors):
            continue
        for name, tensor in zip(group.tensors, group.make(), strict=True):
            if name in names:
                yield name, tensor


def _tokens(first: OpenedModel, second: OpenedModel, texts: Sequence[str]) -> tuple[list[Tensor], str]:
    """[1, S] each, and what they are."""
    sizes = {model.described.model.vocab_size for model in (first, second)}
    if len(sizes) > 1:
        raise ConversionError(
            f"the two models have vocabularies of {' and '.join(map(str, sorted(sizes, key=str)))} words"
        )
    longest = min(model.described.model.max_position_embeddings for model in (first, second))
    tokenizer = first.load_tokenizer() or second.load_tokenizer()
    if tokenizer is not None:
        rows = [tokenizer.encode(text, add_bos=True)[:longest] for text in texts]
        return [torch.tensor([row]) for row in rows if row], "real text"
    generator = torch.Generator().manual_seed(0)
    (size,) = sizes
    assert size is not None
    lengths = [min(length, longest) for length in (1, 16, 64, 256)]
    return [
        torch.randint(0, size, (1, length), generator=generator) for length in lengths
    ], "random words, for want of a tokenizer"
