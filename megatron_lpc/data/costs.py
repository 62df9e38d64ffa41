"""What pairs cost: tokens, and query-key pairs of attention.

`lengths` are [P, 3] tokens of the prompt, chosen and rejected of each pair.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Lengths = TypeVar("Lengths", NDArray[np.int64], Tensor)


def pair_tokens(lengths: NDArray[np.integer[Any]], share_prompt: bool) -> NDArray[np.int64]:
    """[P] tokens of each whole pair; its prompt counts twice where it is not shared."""
    prompts = 1 if share_prompt else 2
    return lengths @ np.array([prompts, 1, 1])


def sequence_tokens(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] tokens of the longest sequence of each pair, where pairs are not packed."""
    if share_prompt:
        return pair_tokens(lengths, share_prompt)
    return lengths[:, 0] + lengths[:, 1:].max(1)


def query_key_pairs(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] query-key pairs that causal attention computes for each pair, without a sliding window."""
    prompt, chosen, rejected = lengths.T
    separate = causal_query_key_pairs(prompt + chosen) + causal_query_key_pairs(prompt + rejected)
    return separate - causal_query_key_pairs(prompt) if share_prompt else separate


def causal_query_key_pairs(length: Lengths, window: int | None = None) -> Lengths:
    """Query-key pairs of causal attention in sequences of these lengths.

    Args:
        length: tokens, integers of any shape.
        window: tokens that a query reads at most, itself included; None: all earlier ones.
    """
    beyond_window = (length - window).clip(min=0) if window else 0 * length
    return (length * (length + 1) - beyond_window * (beyond_window + 1)) // 2
