"""The model of a checkpoint, ready to score data sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from megatron_lpc.config import Config
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.scoring import EvaluationStep, number_of_codes, score_pairs
from megatron_lpc.losses import uses_reference
from megatron_lpc.model import LatentSource, build_model
from megatron_lpc.platform import Platform
from megatron_lpc.terminal import progress
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint
from megatron_lpc.training.checkpoint_tensors import compare_options, copy_weights, read_tensors, sharded_weights
from megatron_lpc.training.reference import NoReference, Reference
from megatron_lpc.training.run import make_loader, online_reference, open_data, open_tokenizer


class CheckpointScorer:
    """The policy of the checkpoint `config.checkpoint.load`, with its tokenizer and its reference."""

    def __init__(self, config: Config, platform: Platform) -> None:
        """Build the model and load its weights.

        Collectives: those of `read_tensors` and `online_reference`.

        Raises:
            ConfigError: the options do not fit the checkpoint, or the tokenizer cannot be loaded.
        """
        self.config = config
        self._platform = platform
        self._tokenizer = open_tokenizer(config)
        self._policy = build_model(config, platform, config.latent)
        self._load_policy()
        self._reference: Reference = NoReference()
        if uses_reference(config.loss):
            self._reference = online_reference(config, platform)

    def _load_policy(self) -> None:
        """Strict, unlike a start from pretrained weights: a head that the checkpoint lacks would have fresh weights."""
        config = self.config
        assert config.checkpoint.load is not None
        assert config.model.vocab_size is not None
        folder = resolve_checkpoint(config.checkpoint.load)
        compare_options(folder, read_description(folder).get("options", {}), config)
        wanted = {"model": sharded_weights(self._policy)}
        stored = read_tensors(folder, wanted, vocab_size=config.model.vocab_size, ignored=("optimizer.",))
        copy_weights(self._policy, stored["model"])

    def open(self, name: str, source: str) -> PairDataset:
        """A tokenized data set. Errors and collectives: those of `open_data`."""
        return open_data(self.config, self._tokenizer, [source], name)

    def score(
        self,
        name: str,
        data: PairDataset,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None = None,
    ) -> PairTable:
        """Score all P pairs of a data set. Collectives: those of `score_pairs`.

        Args:
            sources: the latents, axis L of `PairTable.logps`.
            mixture: [P, K] mixture weights of each pair, for the source of that name.
        """
        loader = make_loader(self.config, self._tokenizer, data)
        steps: Iterable[EvaluationStep] = loader.evaluation()
        if mixture is not None:
            steps = _with_mixture(steps, mixture)
        num_steps = math.ceil(len(data) / loader.global_batch_size)
        return score_pairs(
            self._policy,
            progress(steps, f"Scoring {name} under {' and '.join(sources)}", total=num_steps),
            self._reference,
            sources,
            self._platform.device,
            num_codes=number_of_codes(self.config.latent),
        )


def _with_mixture(steps: Iterable[EvaluationStep], mixture: Tensor) -> Iterator[EvaluationStep]:
    """The same micro-batches, with the mixture weights of their pairs."""
    for step in steps:
        yield [(replace(batch, mixture=mixture[batch.example_index].float()), valid) for batch, valid in step]
