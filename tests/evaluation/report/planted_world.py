"""Scored pairs with planted annotators, without a model: `ada` likes lovely things, `ben` plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_lpc.config import CheckpointConfig, Config, DataConfig, LatentConfig, LossConfig
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.evaluation.marginal import log_likelihoods
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs, Sources, SupportScores
from megatron_lpc.evaluation.support import GroupLatents

PROMPTS, CODES, SUPPORT = 60, 4, 4
CODE_OF = {"ada": 2, "ben": 0}
LIKED = {"ada": "lovely bright", "ben": "plain gray"}
PLACES = ("garden", "river")


class WordTokenizer:
    """A token per word."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    @property
    def vocab_size(self) -> int:
        return len(self.entries)

    def encode(self, text: str) -> list[int]:
        for entry in text.split(" "):
            if entry not in self.entries:
                self.entries.append(entry)
        return [self.entries.index(entry) for entry in text.split(" ")]

    def decode(self, ids: Sequence[int], *, show_special: bool = False) -> str:
        return " ".join(self.entries[i] for i in ids)


@dataclass(frozen=True)
class World:
    """What is planted, and what may be changed about it."""

    shuffles_groups: bool = False
    """Whether each pair's group is drawn, so that codes tell nothing of it."""
    shuffles_codes: bool = False
    """Whether each pair's code is drawn, so that texts tell nothing of it."""
    is_collapsed: bool = False
    has_groups: bool = True
    names: dict[str, str] | None = None
    """Other names of groups and sources."""
    remark: str = ""
    """Stands in all texts."""


def scored_pairs(world: World, folder: Path) -> ScoredPairs:
    """Each prompt is labelled by both annotators; the posterior of a pair is for the annotator's code."""
    generator = torch.Generator().manual_seed(3)
    tokenizer = WordTokenizer()
    remark = f" {world.remark}" if world.remark else ""
    pairs, groups, sources = [], [], []
    for number in range(PROMPTS):
        place = PLACES[number % 2]
        prompt = tokenizer.encode(f"describe the {place} of day {number}{remark}")
        for group in CODE_OF:
            other = "ben" if group == "ada" else "ada"
            chosen, rejected = (
                tokenizer.encode(f"a {LIKED[who].split()[number % 3 % 2]} {place} with day {number}{remark}")
                for who in (group, other)
            )
            pairs.append(EncodedPair(prompt, chosen, rejected, group))
            groups.append(group)
            sources.append(place)
    count = len(pairs)
    order = torch.randperm(count, generator=generator).tolist()
    code_of_pair = torch.tensor([CODE_OF[group] for group in groups])
    if world.shuffles_codes:
        code_of_pair = code_of_pair[order]
    own = torch.nn.functional.one_hot(code_of_pair, CODES).double()
    noise = 0.3 * torch.randn(count, CODES, generator=generator, dtype=torch.float64)
    # Under the own code the chosen response is better, under the other annotator's worse, and else a little of either.
    margins = noise + 3 * own
    for group, code in CODE_OF.items():
        is_other = torch.tensor([other != group for other in groups])
        margins[is_other, code] = -2 - noise[is_other, code]
    code_logps = torch.stack([margins / 2, -margins / 2], dim=-1)
    posterior_logits = torch.zeros_like(own) if world.is_collapsed else 4 * own + noise
    if world.shuffles_groups:
        groups = [groups[place] for place in order]
    names = world.names or {}
    groups, sources = ([names.get(name, name) for name in labels] for labels in (groups, sources))
    config = Config(
        data=DataConfig(group_column="annotator" if world.has_groups else None),
        latent=LatentConfig(codebook_size=CODES),
        loss=LossConfig(beta=1.0),
        checkpoint=CheckpointConfig(load=str(folder)),
    )
    table = PairTable(
        example_index=torch.arange(count),
        logps=code_logps.mean(1, keepdim=True),
        code_logps=code_logps,
        reference_logps=torch.zeros(count, 2, dtype=torch.float64),
        response_length=torch.full((count, 2), 6.0, dtype=torch.float64),
        posterior_logits=posterior_logits,
        prior_logits=torch.zeros_like(posterior_logits),
        latent_mean=torch.zeros(count, 0, dtype=torch.float64),
    )
    prompts = torch.arange(count) // 2
    support = _support(config, table, groups, prompts.tolist()) if world.has_groups else None
    code_logits = torch.zeros(CODES, tokenizer.vocab_size, dtype=torch.float64)
    for group, code in CODE_OF.items():
        code_logits[code, [tokenizer.encode(entry)[0] for entry in LIKED[group].split()]] = torch.tensor(
            [2.0, 1.0]
        ).double()
    data: Any = {"planted": pairs}
    return ScoredPairs(
        config=config,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        data=data,
        table=table,
        prompts=prompts,
        support=support,
        sources=Sources(kind="place", names=sources),
        code_logits=code_logits,
        on_map=torch.arange(count),
        prompt_states=torch.randn(PROMPTS, 8, generator=generator).double().repeat_interleave(2, dim=0),
    )


def _support(config: Config, table: PairTable, groups: list[str], prompts: list[int]) -> SupportScores:
    latents = GroupLatents.estimate(
        table.posterior_logits, log_likelihoods(config.loss, table), groups, prompts, pairs=SUPPORT, seed=0
    )
    mixture = latents.mixture_of_each(groups)
    under_mixture = (mixture[:, :, None] * table.code_logps).sum(1, keepdim=True)
    return SupportScores(
        groups=groups,
        pairs=SUPPORT,
        latents=latents,
        table=replace(table, logps=under_mixture),
        is_query=latents.query_pairs(groups, prompts),
    )
