"""Evaluate a checkpoint: `torchrun … -m megatron_lpc.evaluate --config RUN/config.yaml [--load RUN] [--valid-data NAME=FILE …]`.

Accuracy under the model's own latents; where pairs belong to groups (`--group-column`), also what the codes know of the groups and how well
a group's latent, made from a handful of its pairs, judges the group's other pairs.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor

from megatron_lpc.command_line import reports_errors
from megatron_lpc.config import Config, ConfigError
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import PairDataset
from megatron_lpc.evaluation import draw_support, held_out_pairs, mutual_information, support_mixtures
from megatron_lpc.evaluation.options import SupportOptions, has_groups, parse_command
from megatron_lpc.evaluation.report import Report, report_table, write_json
from megatron_lpc.evaluation.scoring import PairTable, evaluation_sources, score_pairs, table_metrics
from megatron_lpc.evaluation.support_report import judge
from megatron_lpc.losses import uses_reference
from megatron_lpc.model import LatentSource, build_model
from megatron_lpc.platform import Platform
from megatron_lpc.terminal import wide_console
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint
from megatron_lpc.training.checkpoint_tensors import compare_options, copy_weights, read_tensors, sharded_weights
from megatron_lpc.training.reference import NoReference, Reference
from megatron_lpc.training.run import make_loader, online_reference, open_data, open_tokenizer
from megatron_lpc.training.setup import start_distributed, stop_distributed


def evaluate(config: Config, support: SupportOptions) -> dict[str, Report]:
    """Evaluate the checkpoint `config.checkpoint.load` on all of `config.data.valid_data`, whole.

    Options for training alone are not read. Support and information need codes and groups, and are None without.

    Raises:
        ConfigError: the options cannot work, or do not fit the checkpoint; a data set has no pair left to judge by support.
    """
    # Validation asks for the data of a run; those of this one are what it evaluates.
    config.data.train_data = list(config.data.valid_data.values())
    score = _Scorer(config, start_distributed(config))
    known = None
    if has_groups(config) and support.data is not None:
        data = score.open("support", support.data)
        known = _meet(data, score(data, "support", ("posterior",)), support)
    reports = {}
    for name, source in config.data.valid_data.items():
        data, sources = score.open(name, source), evaluation_sources(config.latent)
        table = score(data, name, sources)
        metrics: dict[str, dict[str, float]] = {
            latent: table_metrics(config, table, index) for index, latent in enumerate(sources)
        }
        reports[name] = Report(pairs=len(data), metrics=metrics, information=None, support=None)
        if has_groups(config):
            people = known or _meet(data, table, support)
            groups, kept = _groups(data), people.held_out(data)
            if not kept.any():
                raise ConfigError(
                    f"--valid-data {name}: no pair is left to judge by {support.pairs} support pairs a group; "
                    "lower --support-pairs, or draw them from other data with --support-data"
                )
            under_support = score(data, name, ("mixture",), people.mixture(groups, config.latent.codebook_size))
            judged = replace(table, logps=torch.cat([table.logps, under_support.logps]))
            reports[name] = replace(
                reports[name],
                information=mutual_information(table.posterior_logits.argmax(-1), groups),
                support=judge(config, judged, (*sources, "support"), groups, kept, people.latents),
            )
    stop_distributed()
    return reports


class _Scorer:
    """The model of a checkpoint, its reference and its tokenizer."""

    def __init__(self, config: Config, platform: Platform) -> None:
        self.config, self.platform = config, platform
        self.tokenizer = open_tokenizer(config)
        self.policy = build_model(config, platform, config.latent)
        assert config.checkpoint.load is not None
        assert config.model.vocab_size is not None
        folder = resolve_checkpoint(config.checkpoint.load)
        compare_options(folder, read_description(folder).get("options", {}), config)
        # Strict, unlike a start from pretrained weights: a head that the checkpoint lacks would be judged with fresh weights.
        wanted = {"model": sharded_weights(self.policy)}
        stored = read_tensors(folder, wanted, vocab_size=config.model.vocab_size, ignored=("optimizer.",))
        copy_weights(self.policy, stored["model"])
        self.reference: Reference = online_reference(config, platform) if uses_reference(config.loss) else NoReference()

    def open(self, name: str, source: str) -> PairDataset:
        return open_data(self.config, self.tokenizer, [source], name)

    def __call__(
        self, data: PairDataset, name: str, sources: tuple[LatentSource, ...], mixture: Tensor | None = None
    ) -> PairTable:
        """`mixture`: [P, K] code weights of every pair, for the source of that name."""
        loader = make_loader(self.config, self.tokenizer, data)
        steps = track(
            _with_mixture(loader.evaluation(), mixture),
            f"Scoring {name} under {' and '.join(sources)}",
            total=math.ceil(len(data) / loader.global_batch_size),
            console=Console(stderr=True),
            disable=dist.get_rank() != 0,
        )
        return score_pairs(self.policy, steps, self.reference, sources, self.platform.device)


def _with_mixture(
    steps: Iterable[list[tuple[PairBatch, int]]], mixture: Tensor | None
) -> Iterator[list[tuple[PairBatch, int]]]:
    for step in steps:
        yield (
            step
            if mixture is None
            else [(replace(batch, mixture=mixture[batch.example_index].float()), valid) for batch, valid in step]
        )


@dataclass(frozen=True)
class _People:
    """What is known of each group from its support."""

    latents: dict[str, Tensor]
    """[K] code weights."""
    prompts: dict[str, set[Hashable]]
    """Prompts of the support."""

    def held_out(self, data: PairDataset) -> Tensor:
        return held_out_pairs(_groups(data), _prompts(data), self.prompts)

    def mixture(self, groups: Sequence[str], codes: int) -> Tensor:
        """[P, K]; zero for groups without support, whose pairs are not judged."""
        return torch.stack([self.latents.get(group, torch.zeros(codes, dtype=torch.float64)) for group in groups])


def _meet(data: PairDataset, table: PairTable, options: SupportOptions) -> _People:
    rows, prompts = draw_support(_groups(data), options.pairs, options.seed), _prompts(data)
    latents = support_mixtures(table.posterior_logits, rows)
    return _People(latents, {group: {prompts[row] for row in own} for group, own in rows.items()})


def _groups(data: PairDataset) -> list[str]:
    return [str(group) for group in data.groups]


def _prompts(data: PairDataset) -> list[tuple[int, ...]]:
    """Prompts as tokens: those that the model cannot tell apart are equal."""
    return [tuple(data[row].prompt) for row in range(len(data))]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; rank 0 says why."""
    with reports_errors():
        config, support, output = parse_command(sys.argv[1:] if argv is None else argv)
        reports = evaluate(config, support)
    if os.environ.get("RANK", "0") == "0":
        wide_console().print(report_table(reports))
        if output is not None:
            assert config.checkpoint.load is not None
            settings = {
                "checkpoint": str(resolve_checkpoint(config.checkpoint.load)),
                "loss_type": config.loss.loss_type,
            }
            write_json(output, settings | {"support": asdict(support) if has_groups(config) else None}, reports)


if __name__ == "__main__":
    main()
