"""The model of a checkpoint, ready to score data sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from megatron_lpc.config import with_options
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.hidden_store import HiddenStore
from megatron_lpc.evaluation.code_logits import code_logits
from megatron_lpc.evaluation.group_vectors import fit_group_vectors
from megatron_lpc.evaluation.options import SupportOptions
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.prompt_states import prompt_states
from megatron_lpc.evaluation.scoring import EvaluationStep, score_pairs
from megatron_lpc.losses import uses_reference
from megatron_lpc.model import LatentSource, unwrapped
from megatron_lpc.terminal import progress
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.hidden_cache import hidden_stores
from megatron_lpc.training.inputs import open_dataset, open_inputs
from megatron_lpc.training.known_groups import with_saved_groups
from megatron_lpc.training.loaders import pair_loader
from megatron_lpc.training.policy import load_policy
from megatron_lpc.training.reference import NoReference, Reference, ZeroLatentReference, online_reference
from megatron_lpc.training.setup import RunContext


class CheckpointScorer:
    """The policy of the checkpoint `config.checkpoint.load`, with its tokenizer and its reference."""

    def __init__(self, context: RunContext) -> None:
        """Build the model and load its weights.

        Collectives: those of `load_policy` and `online_reference`.

        Raises:
            ConfigError: the options do not fit the checkpoint, or the tokenizer cannot be loaded.
        """
        context, self.tokenizer = open_inputs(context)
        self._context = replace(context, config=with_saved_groups(context.config))
        self.config = self._context.config
        assert self.config.checkpoint.load is not None
        self._policy = load_policy(self._context, self.config.checkpoint.load)
        self._reference: Reference = NoReference()
        if uses_reference(self.config.loss) and self.config.training.freeze_backbone:
            self._reference = ZeroLatentReference()
        elif uses_reference(self.config.loss):
            self._reference = online_reference(self._context)
        self._hidden: dict[str, HiddenStore | None] = {}
        """By the fingerprint of a data set."""

    def open(self, name: str, source: str, group_column: str | None = None) -> PairDataset:
        """A tokenized data set. Errors and collectives: those of `open_dataset`.

        Args:
            group_column: the column of `PairDataset.groups`, where it is not that of the options.
        """
        config = self.config if group_column is None else with_options(self.config, group_column=group_column)
        return open_dataset(config, self.tokenizer, [source], name)

    def score(
        self,
        name: str,
        data: PairDataset,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> PairTable:
        """Score all P pairs of a data set, or some. Collectives: those of `hidden_stores` and `score_pairs`.

        Args:
            sources: the latents, axis L of `PairTable.logps`.
            mixture: [P, K] mixture weights of each pair, or [P, H] vectors, for the source of that name; or [W, 1, K]
                for W latents, under each of which all pairs are scored in one pass.
            examples: example indices of the pairs to score; all when not given.
        """
        if data.fingerprint not in self._hidden:
            (self._hidden[data.fingerprint],) = hidden_stores(
                self._context, self.tokenizer, self._policy, [(name, data)]
            )
        loader = pair_loader(self._context, self.tokenizer, data, self._hidden[data.fingerprint])
        steps: Iterable[EvaluationStep] = loader.evaluation(examples=None if examples is None else np.array(examples))
        if mixture is not None:
            steps = _with_mixture(steps, mixture)
        num_steps = math.ceil(len(data if examples is None else examples) / loader.global_batch_size)
        return score_pairs(
            self._context,
            self._policy,
            progress(steps, f"Scoring {name} under {' and '.join(sources)}", total=num_steps),
            self._reference,
            sources,
            latent=self.config.latent,
            num_mixtures=1 if mixture is None or not _is_shared(mixture) else len(mixture),
        )

    def codes(self) -> tuple[Tensor, Tensor]:
        """The codebook [K, H] and its unit [1] as fp64 on the CPU, of a model with codes.

        Collectives: those of `from_last_stage`, twice.
        """
        head = getattr(unwrapped(self._policy[-1]), "latent_head", None)
        groups, device = self._context.groups, self._context.platform.device

        def shared(name: str) -> Tensor:
            own = getattr(head, name).detach().double() if groups.is_last_stage else None
            return from_last_stage(own, groups, device).cpu()

        return shared("codebook"), shared("code_unit")

    def code_logits(self) -> Tensor:
        """[K, V] z W^T of each code. Collectives: those of `code_logits`."""
        return code_logits(self._context, self._policy)

    def prompt_states(self, data: PairDataset, examples: Sequence[int]) -> Tensor:
        """[M, H] h_x of some pairs of a data set. Collectives: those of `prompt_states`.

        Args:
            examples: their M example indices, ascending; at least one.
        """
        loader = pair_loader(self._context, self.tokenizer, data, self._hidden.get(data.fingerprint))
        return prompt_states(self._context, self._policy, loader.evaluation(examples=np.asarray(examples)))

    def fit_group_vectors(
        self, data: PairDataset, support_sets: Mapping[str, Sequence[int]], support: SupportOptions
    ) -> dict[str, Tensor]:
        """A vector [H] for each group, fitted to its support set. Collectives: those of `fit_group_vectors`.

        Args:
            support_sets: group -> example indices, as many of each group.
        """
        names = list(support_sets)
        if not names:
            return {}
        group_of_example = torch.zeros(len(data), dtype=torch.int64)
        for number, name in enumerate(names):
            group_of_example[list(support_sets[name])] = number
        examples = np.array([index for name in names for index in support_sets[name]])
        steps = pair_loader(self._context, self.tokenizer, data).evaluation(examples=examples)
        fitted = fit_group_vectors(
            self._context, self._policy, steps, self._reference, group_of_example[: examples.max() + 1], support
        )
        return dict(zip(names, fitted, strict=True))


def _with_mixture(steps: Iterable[EvaluationStep], mixture: Tensor) -> Iterator[EvaluationStep]:
    """The same micro-batches, with the mixture weights of their pairs, or those that all pairs share."""
    for step in steps:
        yield [
            (replace(batch, mixture=(mixture if _is_shared(mixture) else mixture[batch.example_index]).float()), valid)
            for batch, valid in step
        ]


def _is_shared(mixture: Tensor) -> bool:
    return mixture.dim() == 3
