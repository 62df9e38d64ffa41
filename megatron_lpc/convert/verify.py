"""Whether two models are the same: every tensor, and the logits of real text.

Agreement on the most probable token would not do: it survives a wrong norm or a wrong rotary scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_lpc.command_line import flag_of
from megatron_lpc.convert.comparison import Comparison, Difference
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.model_options import differing_options
from megatron_lpc.convert.open_model import OpenedModel
from megatron_lpc.terminal import transfer_bar

TEXTS = (
    "The",
    "Two people may prefer different answers to one question, and both be right.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Der Vogel singt; the bird sings; el pájaro canta. 3 + 4 = 7, 1999-12-31, $5.00. " * 8,
)
"""Short and long, prose and code, several languages: what is compared when the user gives no text."""


def verify(first: OpenedModel, second: OpenedModel, texts: Sequence[str] = TEXTS) -> Comparison:
    """Compare two models.

    Memory: one of them in fp32 at a time, for its logits.

    Raises:
        ConversionError: their vocabularies or tensors have different shapes, so that they cannot be compared.
    """
    tokens, token_source = _tokens(first, second, texts)
    first_names = _names(first)
    second_names = _names(second)
    return Comparison(
        tensors=_compare_tensors(first, second, first_names & second_names),
        one_sided=sorted(first_names ^ second_names),
        options=[flag_of(name) for name in differing_options(first.described.model, second.described.model)],
        logits=_compare_logits(first, second, tokens),
        token_source=token_source,
        dtypes=frozenset(_dtypes(first) ^ _dtypes(second)),
    )


def _compare_tensors(first: OpenedModel, second: OpenedModel, names: set[str]) -> dict[str, Difference]:
    differences = {}
    nbytes = sum(info.nbytes for info in first.stored.values())
    pairs = zip(_tensors(first, names), _tensors(second, names), strict=True)
    with transfer_bar("Comparing tensors", nbytes) as advance:
        for (name, one), (_, other) in pairs:
            if one.shape != other.shape:
                raise ConversionError(f"{name} has shape {list(one.shape)} in one and {list(other.shape)} in the other")
            differences[name] = Difference.of(one.float(), other.float())
            advance(one.nbytes)
    return differences


def _compare_logits(first: OpenedModel, second: OpenedModel, tokens: list[Tensor]) -> list[tuple[int, Difference]]:
    differences = []
    for one, other in zip(first.logits(tokens), second.logits(tokens), strict=True):
        differences.append((one.size(1), Difference.of(one, other)))
    return differences


def _dtypes(model: OpenedModel) -> set[torch.dtype]:
    return {info.dtype for info in model.stored.values()}


def _names(model: OpenedModel) -> set[str]:
    return {name for group in model.groups for name in group.tensors}


def _tensors(model: OpenedModel, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the order of the forward pass, which is the same in both formats."""
    for group in model.groups:
        if names.isdisjoint(group.tensors):
            continue
        for name, tensor in zip(group.tensors, group.make(), strict=True):
            if name in names:
                yield name, tensor


def _tokens(first: OpenedModel, second: OpenedModel, texts: Sequence[str]) -> tuple[list[Tensor], str]:
    """Token ids [1, S] of each text, and what they are."""
    vocab_size = _common_vocab_size(first, second)
    longest = min(model.described.model.max_position_embeddings for model in (first, second))
    tokenizer = first.load_tokenizer() or second.load_tokenizer()
    if tokenizer is not None:
        sequences = [tokenizer.encode(text, add_bos=True)[:longest] for text in texts]
        return [torch.tensor([sequence]) for sequence in sequences if sequence], "real text"
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, longest) for length in (1, 16, 64, 256)]
    random = [torch.randint(0, vocab_size, (1, length), generator=generator) for length in lengths]
    return random, "random token ids, without a tokenizer"


def _common_vocab_size(first: OpenedModel, second: OpenedModel) -> int:
    one = first.described.model.vocab_size
    other = second.described.model.vocab_size
    if one != other:
        raise ConversionError(f"the two models have different vocabulary sizes, {one} and {other}")
    assert one is not None
    return one
