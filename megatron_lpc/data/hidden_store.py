"""Hidden states of a frozen backbone on disk: one folder per data set, in blocks of pairs that are memory-mapped.

Of each response the hidden states from the last token of its prompt to its own last token are kept, [n + 1, H] for n
tokens: the first n predict its tokens, the first is h_x too, and the last is h_w or h_l. A response to a prompt that
stands in many pairs, as where many annotators label the same ones, is kept once, computed in the first of them. A block
has the rows of the responses that are new in its pairs one after the other, chosen before rejected, as the one tensor
`hidden` of a safetensors file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_lpc.data.distinct_responses import DistinctResponses
from megatron_lpc.data.pair_hidden import PairHidden
from megatron_lpc.files import whole_file
from megatron_lpc.outside.messages import reason

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

    def __init__(self, root: str | Path, origin: HiddenOrigin, responses: DistinctResponses, hidden_size: int) -> None:
        """
        Args:
            root: folder that data sets share, each in a folder named after its fingerprint.
            responses: those of the data set.
        """
        self.folder = Path(root) / origin.data[:20]
        self._origin = origin
        self._responses = responses
        self._hidden_size = hidden_size
        self._blocks: dict[int, Tensor] = {}
        new_of_pairs = responses.new_of_pairs
        self._pairs = np.flatnonzero(new_of_pairs)
        # Responses are numbered as they first occur, so those of a block are consecutive.
        self._first_response = np.cumsum([0, *new_of_pairs[self._pairs]])[::BLOCK_PAIRS]
        self._row_ends = np.cumsum(responses.tokens + 1, dtype=np.int64)

    @property
    def num_blocks(self) -> int:
        return -(-len(self._pairs) // BLOCK_PAIRS)

    def pairs_of(self, block: int) -> list[int]:
        """Example indices of a block: pairs of which a response stands in no earlier pair."""
        pairs: list[int] = self._pairs[block * BLOCK_PAIRS : (block + 1) * BLOCK_PAIRS].tolist()
        return pairs

    def num_responses(self, blocks: Sequence[int]) -> int:
        """Responses whose hidden states these blocks have."""
        return sum(len(self._responses.tokens[self._responses_of(block)]) for block in blocks)

    def num_rows(self, blocks: Sequence[int]) -> int:
        """Hidden states of all responses of these blocks."""
        return sum(int((self._responses.tokens[self._responses_of(block)] + 1).sum()) for block in blocks)

    def missing_blocks(self) -> list[int]:
        """Blocks that are not written yet.

        Raises:
            ValueError: a block is of another origin, or damaged.
        """
        return [block for block in range(self.num_blocks) if self._open(block) is None]

    def write_block(self, block: int, rows_of_pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Write a block whole.

        Args:
            rows_of_pairs: what `rows_of_pairs` gives for each of its pairs, in their order, on the host.
        """
        rows: dict[int, Tensor] = {}
        for example_index, of_pair in zip(self.pairs_of(block), rows_of_pairs, strict=True):
            rows |= zip(self._responses.numbers[example_index].tolist(), of_pair, strict=True)
        wanted = self._responses_of(block)
        hidden = torch.cat([rows[response] for response in range(wanted.start, wanted.stop)])
        with whole_file(self._file(block)) as temporary:
            save_file({"hidden": hidden}, temporary, metadata=asdict(self._origin))

    def read(self, example_indices: Sequence[int]) -> PairHidden:
        """The hidden states of B pairs, copied from the files."""
        rows_of_pairs = [
            [self._rows(response, example_index) for response in self._responses.numbers[example_index].tolist()]
            for example_index in example_indices
        ]
        chosen, rejected = zip(*rows_of_pairs, strict=True)
        responses = [*chosen, *rejected]
        return PairHidden(
            loss_tokens=torch.cat([rows[:-1] for rows in responses]),
            prompt_end=torch.stack([rows[0] for rows in chosen]),
            response_end=torch.stack([rows[-1] for rows in responses]),
        )

    def _rows(self, response: int, example_index: int) -> Tensor:
        """[n + 1, H] of a response of a pair."""
        block = int(np.searchsorted(self._first_response, response, side="right")) - 1
        if block not in self._blocks:
            hidden = self._open(block)
            if hidden is None:
                raise FileNotFoundError(f"{self._file(block)}: the hidden states of pair {example_index} are gone")
            self._blocks[block] = hidden
        before = self._start_of(int(self._first_response[block]))
        return self._blocks[block][self._start_of(response) - before : int(self._row_ends[response]) - before]

    def _start_of(self, response: int) -> int:
        """Rows of all responses before it."""
        return int(self._row_ends[response - 1]) if response else 0

    def _responses_of(self, block: int) -> slice:
        """Numbers of the responses whose rows a block has."""
        ends = [*self._first_response[1 : self.num_blocks], len(self._responses.tokens)]
        return slice(int(self._first_response[block]), int(ends[block]))

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
            raise ValueError(f"{path}: cannot be read ({reason(error)}); {remedy}") from error
        wanted = asdict(self._origin)
        differing = [name for name in wanted if made_of.get(name) != wanted[name]]
        if differing:
            changes = "; ".join(f"{name} {made_of.get(name)}, now {wanted[name]}" for name in differing)
            raise ValueError(f"{path}: these hidden states are of something else ({changes}); {remedy}")
        if hidden.shape != (self.num_rows([block]), self._hidden_size) or not hidden.is_floating_point():
            raise ValueError(f"{path}: holds {list(hidden.shape)}, and its pairs do not; {remedy}")
        return hidden


def rows_of_pairs(hidden: PairHidden, response_length: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """What a store keeps of each pair of a micro-batch: the rows of chosen and rejected.

    Args:
        response_length: tokens of the 2B responses, chosen first.
    """
    segments = hidden.loss_tokens.split(list(response_length))
    responses = [torch.cat([rows, last[None]]) for rows, last in zip(segments, hidden.response_end, strict=True)]
    pairs = len(responses) // 2
    return list(zip(responses[:pairs], responses[pairs:], strict=True))
