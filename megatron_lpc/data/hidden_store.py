"""Hidden states of a frozen backbone on disk: one folder per data set, in blocks of pairs that are memory-mapped.

Of each response the hidden states from the last token of its prompt to its own last token are kept, [n + 1, H] for n
tokens: the first n predict its tokens, the first is h_x too, and the last is h_w or h_l. A block has the rows of its
pairs one after the other, chosen before rejected, as the one tensor `hidden` of a safetensors file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_lpc.data.pair_hidden import PairHidden
from megatron_lpc.files import whole_file

BLOCK_PAIRS = 64
"""Pairs per file: few enough to be held in memory while a block is written, and lost when that is interrupted."""


@dataclass(frozen=True, kw_only=True)
class HiddenOrigin:
    """What hidden states follow from; a file has it in its metadata."""

    data: str
    """`PairDataset.fingerprint`, which covers pairs, tokenizer and truncation."""
    weights: str
    """`weights_fingerprint` of the backbone."""
    model: str
    """Hash of the options that say what the weights mean, and of the precision."""


class HiddenStore:
    """The hidden states of one data set. Files that are there are complete: they appear under their name at the end."""

    def __init__(self, root: str | Path, origin: HiddenOrigin, lengths: NDArray[np.int32], hidden_size: int) -> None:
        """
        Args:
            root: folder that data sets share, each in a folder named after its fingerprint.
            lengths: [P, 3] tokens of the prompt, chosen and rejected of all P pairs.
        """
        self.folder = Path(root) / origin.data[:20]
        self._origin = origin
        self._lengths = lengths
        self._hidden_size = hidden_size
        self._blocks: dict[int, Tensor] = {}

    @property
    def num_blocks(self) -> int:
        return -(-len(self._lengths) // BLOCK_PAIRS)

    def pairs_of(self, block: int) -> range:
        """Example indices of a block."""
        return range(block * BLOCK_PAIRS, min((block + 1) * BLOCK_PAIRS, len(self._lengths)))

    def num_rows(self, blocks: Sequence[int]) -> int:
        """Hidden states of all pairs of these blocks."""
        return sum(int(self._rows_of_pairs(block).sum()) for block in blocks)

    def missing_blocks(self) -> list[int]:
        """Blocks that are not written yet.

        Raises:
            ValueError: a block is of another origin, or damaged.
        """
        return [block for block in range(self.num_blocks) if self._open(block) is None]

    def write_block(self, block: int, rows_of_pairs: Sequence[Tensor]) -> None:
        """Write a block whole.

        Args:
            rows_of_pairs: what `rows_of_pairs` gives for each of its pairs, in their order, on the host.
        """
        with whole_file(self._file(block)) as temporary:
            save_file({"hidden": torch.cat(list(rows_of_pairs))}, temporary, metadata=asdict(self._origin))

    def read(self, example_indices: Sequence[int]) -> PairHidden:
        """The hidden states of B pairs, copied from the files."""
        chosen, rejected = [], []
        for example_index in example_indices:
            rows, num_chosen = self._rows(example_index)
            chosen.append(rows[:num_chosen])
            rejected.append(rows[num_chosen:])
        responses = [*chosen, *rejected]
        return PairHidden(
            loss_tokens=torch.cat([rows[:-1] for rows in responses]),
            prompt_end=torch.stack([rows[0] for rows in chosen]),
            response_end=torch.stack([rows[-1] for rows in responses]),
        )

    def _rows(self, example_index: int) -> tuple[Tensor, int]:
        """Both responses' rows of a pair, and how many of them are the chosen one's."""
        block, position = divmod(example_index, BLOCK_PAIRS)
        if block not in self._blocks:
            hidden = self._open(block)
            if hidden is None:
                raise FileNotFoundError(f"{self._file(block)}: the hidden states of pair {example_index} are gone")
            self._blocks[block] = hidden
        rows = self._rows_of_pairs(block)
        start = int(rows[:position].sum())
        return self._blocks[block][start : start + int(rows[position])], int(self._lengths[example_index, 1]) + 1

    def _rows_of_pairs(self, block: int) -> NDArray[Any]:
        pairs = self.pairs_of(block)
        return self._lengths[pairs.start : pairs.stop, 1:].sum(1) + 2

    def _file(self, block: int) -> Path:
        return self.folder / f"hidden-{block:05d}.safetensors"

    def _open(self, block: int) -> Tensor | None:
        """[rows, H] of a block, which are read from the file when they are used; None where there is none."""
        path = self._file(block)
        if not path.is_file():
            return None
        remedy = "delete the folder, so that they are computed again, or name another one"
        try:
            with safe_open(path, framework="pt") as file:
                made_of = file.metadata() or {}
                hidden: Tensor = file.get_tensor("hidden")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error
        wanted = asdict(self._origin)
        differing = [name for name in wanted if made_of.get(name) != wanted[name]]
        if differing:
            changes = "; ".join(f"{name} {made_of.get(name)}, now {wanted[name]}" for name in differing)
            raise ValueError(f"{path}: these hidden states are of something else ({changes}); {remedy}")
        if hidden.shape != (self.num_rows([block]), self._hidden_size):
            raise ValueError(f"{path}: holds {list(hidden.shape)}, and its pairs do not; {remedy}")
        return hidden


def rows_of_pairs(hidden: PairHidden, response_length: Sequence[int]) -> list[Tensor]:
    """What a store keeps of each pair of a micro-batch.

    Args:
        response_length: tokens of the 2B responses, chosen first.
    """
    segments = hidden.loss_tokens.split(list(response_length))
    responses = [torch.cat([rows, last[None]]) for rows, last in zip(segments, hidden.response_end, strict=True)]
    pairs = len(responses) // 2
    return [torch.cat(both) for both in zip(responses[:pairs], responses[pairs:], strict=True)]
