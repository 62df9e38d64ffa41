"""What scored arguments, and the rules beside them, say of each vote: the probability of the vote that was given."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.convarg.figures import Array
from megatron_lpc.command_line import UserError

SUPPORT_SIZES = (8, 50)
"""Numbers m of votes of a worker."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One strict vote: a row of `prepare.py`."""

    worker: str
    debate: str
    chosen: str
    """Names of the arguments, as `argument_names` has them."""
    rejected: str
    characters: tuple[int, int]
    """Length of chosen and rejected."""

    @property
    def pair(self) -> frozenset[str]:
        return frozenset((self.chosen, self.rejected))


def argument_names(row: Mapping[str, str]) -> tuple[str, str]:
    """Of chosen and rejected of a row of `prepare.py`, as no other debate has them: debate/name."""
    return f"{row['debate']}/{row['chosen_argument']}", f"{row['debate']}/{row['rejected_argument']}"


def read_votes(file: Path) -> list[Vote]:
    """Raises UserError where the file is not one of `prepare.py` with workers."""
    votes = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts = (row[side] for side in ("chosen", "rejected"))
            chosen, rejected = argument_names(row)
            votes.append(
                Vote(
                    worker=row["worker"],
                    debate=row["debate"],
                    chosen=chosen,
                    rejected=rejected,
                    characters=(len(next(texts)), len(next(texts))),
                )
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: cannot be read as votes ({error!r}); take train.jsonl or test.jsonl of prepare.py"
        ) from error
    return votes


def draw_support(votes: Iterable[Vote], seed: int) -> dict[str, list[Vote]]:
    """Worker -> their votes in an order drawn with the seed and their name; the first m are the support set of m."""
    of_workers: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        of_workers[vote.worker].append(vote)
    for worker, of_worker in of_workers.items():
        random.Random(f"{seed}/{worker}").shuffle(of_worker)
    return dict(of_workers)


def support_names(votes: Sequence[Vote]) -> list[list[str]]:
    """Worker, chosen and rejected of each vote of a support set: what a file of scores has of it."""
    return [[vote.worker, vote.chosen, vote.rejected] for vote in votes]


class Scores:
    """What `score.py` wrote of one model."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            self._arguments: dict[str, dict[str, Any]] = content["arguments"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: cannot be read as scores ({error!r}); let score.py write it") from error
        self._log_prior = {debate: np.array(prior) for debate, prior in content["log_prior"].items()}
        self._support_sets = {_key(names): place for place, names in enumerate(content.get("support_sets", []))}
        self._has_codes = any("codes" in rewards for rewards in self._arguments.values())

    @property
    def takes_support(self) -> bool:
        """Whether votes of a worker change what it says of others."""
        return self._has_codes or bool(self._support_sets)

    def without_worker(self, votes: Sequence[Vote]) -> Array:
        """[P] probability of each vote for whoever votes: marginal over the codes, or under the latent of no worker."""
        if self._has_codes:
            return self.with_support(votes, [])
        (latent,) = next(iter(self._arguments.values())).keys() - {"support"}
        return sigmoid(self._margins(votes, latent))

    def with_support(self, votes: Sequence[Vote], support: Sequence[Vote]) -> Array:
        """[P] probability of each vote of one worker, given other votes of theirs: by the exact posterior over codes,
        or under the latent that was estimated from these.

        Raises:
            UserError: there is no such latent in the file.
        """
        if not self._has_codes:
            place = self._support_sets.get(_key(support_names(support)))
            if place is None:
                raise UserError(
                    f"{self._file}: has no latent from these {len(support)} votes of {support[0].worker}; let score.py "
                    "write it with --support-pairs and --support-seed as --support and --seed are here"
                )
            return sigmoid(self._margins(votes, "support")[:, place])
        evidence = np.log(sigmoid(self._margins(support, "codes"))).sum(0) if support else 0.0
        log_weights = np.array([self._log_prior[vote.debate] for vote in votes]) + evidence
        return (softmax(log_weights) * sigmoid(self._margins(votes, "codes"))).sum(1)

    def _margins(self, votes: Sequence[Vote], latent: str) -> Array:
        """[P], or [P, K] under the codes, or [P, W] under the latents of workers."""
        rewards = [[self._arguments[argument][latent] for argument in (vote.chosen, vote.rejected)] for vote in votes]
        of_sides = np.array(rewards)
        margins: Array = of_sides[:, 0] - of_sides[:, 1]
        return margins


def _key(names: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(tuple, names))


def longer_wins(votes: Sequence[Vote]) -> Array:
    """[P] 1 where the longer argument was chosen, 0 where the shorter one was."""
    lengths = np.array([vote.characters for vote in votes])
    return 0.5 + 0.5 * np.sign(lengths[:, 0] - lengths[:, 1])


def majority_of_others(votes: Sequence[Vote]) -> Array:
    """[P] 1 where most other workers who voted on the same pair chose the same, 0.5 where as many did the opposite.

    Args:
        votes: all votes of the part, as the others are looked for among them.
    """
    chosen: Mapping[tuple[frozenset[str], str], set[str]] = defaultdict(set)
    for vote in votes:
        chosen[vote.pair, vote.chosen].add(vote.worker)
    counts = [
        len(chosen[vote.pair, vote.chosen] - {vote.worker}) - len(chosen[vote.pair, vote.rejected] - {vote.worker})
        for vote in votes
    ]
    return 0.5 + 0.5 * np.sign(np.array(counts, dtype=np.float64))


def sigmoid(values: Array) -> Array:
    """Probabilities, kept from 0 and 1 so that their logarithms are finite."""
    # As hyperbolic tangent it does not overflow.
    probabilities: Array = 0.5 + 0.5 * np.tanh(values / 2)
    return np.clip(probabilities, 1e-9, 1 - 1e-9)


def softmax(values: Array) -> Array:
    """[P, K] of each row."""
    weights = np.exp(values - values.max(1, keepdims=True))
    found: Array = weights / weights.sum(1, keepdims=True)
    return found
