"""Sizes of a micro-batch, and how many of them a step has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_lpc.config import Config, data_parallel_size, layer_windows, num_microbatches, seq_len_multiple
from megatron_lpc.data.costs import causal_query_key_pairs, pair_tokens, query_key_pairs, sequence_tokens

_GPU_MULTIPLE = 128
"""As `Platform.sequence_multiple`."""


@dataclass(frozen=True)
class PairLengths:
    """Tokens of a pair, whose responses are alike."""

    prompt: int
    response: int

    @property
    def array(self) -> np.ndarray:
        """[1, 3], as `data.costs` takes lengths."""
        return np.array([[self.prompt, self.response, self.response]], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one data parallel rank sends through the pipeline at a time."""

    pairs: int
    lengths: PairLengths
    sequences: int
    """R."""
    seq_len: int
    """S, padding included."""
    shares_prompt: bool
    is_packed: bool
    windows: tuple[int | None, ...] = (None,)
    """Sliding window of each layer, as `layer_windows` gives them."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return self.sequences * self.seq_len

    @property
    def loss_tokens(self) -> int:
        """N: tokens whose logits are computed."""
        return 2 * self.pairs * self.lengths.response

    @property
    def has_mask(self) -> bool:
        """Whether attention needs a mask, because a sequence is not one prompt and its response."""
        return self.is_packed or self.shares_prompt

    @property
    def demanded(self) -> tuple[int, int, int, int]:
        """Tokens, response tokens, attended query-key pairs and pairs, as `mfu.batch_work` counts them."""
        tokens = int(pair_tokens(self.lengths.array, self.shares_prompt)[0])
        return self.pairs * tokens, self.loss_tokens, self.pairs * self._attended_by_pair(), self.pairs

    @property
    def computed(self) -> tuple[int, int, int, int]:
        """The same with padding. Packed sequences attend within their documents only."""
        attended = self.pairs * self._attended_by_pair()
        if not self.has_mask:
            attended = self.sequences * self._mean_over_layers(self.seq_len)
        return self.tokens, self.loss_tokens, attended, self.pairs

    def _attended_by_pair(self) -> int:
        if self.windows == (None,):
            return int(query_key_pairs(self.lengths.array, self.shares_prompt)[0])
        whole = 2 * self._mean_over_layers(self.lengths.prompt + self.lengths.response)
        return whole - (self._mean_over_layers(self.lengths.prompt) if self.shares_prompt else 0)

    def _mean_over_layers(self, length: int) -> int:
        of_layers = [int(causal_query_key_pairs(np.array(length), window)) for window in self.windows]
        return sum(of_layers) // len(of_layers)


def longest_lengths(config: Config) -> PairLengths:
    """The pair that memory is planned for: `max_length` tokens, of which `max_prompt_length` (else half) are prompt."""
    data = config.data
    prompt = data.max_prompt_length or data.max_length // 2
    return PairLengths(prompt, data.max_length - prompt)


def micro_batch(config: Config, lengths: PairLengths, device_type: str) -> MicroBatch:
    """A micro-batch of pairs that are all of these lengths.

    Args:
        device_type: `cuda` or `cpu`, by which sequences are padded where the options do not say.
    """
    data = config.data
    windows = layer_windows(config.model)
    layout: dict[str, Any] = {
        "lengths": lengths,
        "shares_prompt": data.share_prompt,
        "windows": tuple(windows) if any(windows) else (None,),
    }
    if data.pack_to is not None:
        pairs = max(1, data.pack_to // int(pair_tokens(lengths.array, data.share_prompt)[0]))
        return MicroBatch(pairs=pairs, sequences=1, seq_len=data.pack_to, is_packed=True, **layout)
    pairs = config.training.micro_batch_size
    sequences = pairs if data.share_prompt else 2 * pairs
    multiple = data.pad_to_multiple_of or (_GPU_MULTIPLE if device_type == "cuda" else 1)
    multiple = math.lcm(multiple, seq_len_multiple(config))
    seq_len = int(sequence_tokens(lengths.array, data.share_prompt)[0])
    return MicroBatch(
        pairs=pairs, sequences=sequences, seq_len=-(-seq_len // multiple) * multiple, is_packed=False, **layout
    )


def micro_batches_per_step(config: Config, batch: MicroBatch, world_size: int) -> int:
    """Micro-batches of one data parallel rank in one step."""
    if not batch.is_packed:
        return num_microbatches(config, world_size)
    parallel = config.parallel
    multiple = parallel.pipeline_model_parallel_size if parallel.num_virtual_stages_per_pipeline_rank else 1
    copies = data_parallel_size(config, world_size)
    fewest = math.ceil(config.training.global_batch_size / (copies * batch.pairs))
    return -(-fewest // multiple) * multiple
