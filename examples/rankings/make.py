"""Write preference pairs of annotators who rank kinds of response, with a known share on which they disagree.

    python examples/rankings/make.py pets --output data/pets

    task        annotators rank      as
    pets        birds, dogs, cats,   ann: birds, dogs, cats, rabbits; bob: birds, cats, dogs, rabbits
                rabbits
    two-peaks   amounts, one to      ann: nearest to the middle; bob: to sixteen
                sixteen
    four-peaks  the same             ann, bob, cid, dora: nearest to a quarter, a half, three quarters of it, and all

All annotators label each prompt, on the same two responses. On `--divergent` of the prompts they are not of one mind:
the kinds of the two responses are drawn among those couples of kinds. On the others all prefer the same. Nothing in a
prompt tells who labels it. Couples on which an annotator is indifferent are left out.

Files: train, valid and test.jsonl (no prompt is in two of them), test_agree.jsonl and test_divergent.jsonl (the two
parts of test.jsonl). Columns: prompt, chosen, rejected, annotator. The same flags give the same files, byte for byte.
"""

# ruff: noqa: SIM905 - lists of words are easier to read and to change as text

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_lpc.command_line import ArgumentParser, UserError, flag_of, reports_errors
from megatron_lpc.files import write_text

PETS = {
    "birds": ("parrot canary finch budgie", "sings at dawn|learns new words|hops about its cage|wakes up early"),
    "dogs": ("puppy hound terrier collie", "fetches a stick|guards the door|loves long walks|wags its tail"),
    "cats": ("kitten tabby tomcat siamese", "naps in the sun|hunts for mice|purrs on a lap|climbs the shelf"),
    "rabbits": ("bunny hare lop dwarf", "chews on hay|digs in the yard|thumps its feet|hides in a box"),
}
AMOUNTS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
PROMPTS = {
    "pets": ("which pet suits|what pet is right for|suggest a pet for|name a good pet for", " ?"),
    "amounts": ("how many apples for|how many chairs for|how many candles for|how many cups for", " ?"),
}
PEOPLE = "a family|a student|a couple|a teacher|my aunt|my uncle|our guests|a neighbor|a nurse|a farmer".split("|")
HOMES = (
    "in a flat|in a cottage|on a farm|in a house|in a cabin|in a loft|in a villa|on a boat|in a tent|in a hut".split(
        "|"
    )
)
PLACES = "in the city|by the sea|in the hills|near a park|on an island|by a forest|at a lake|in the north".split("|")

Utility = dict[str, float]
"""Kind of response -> how much an annotator likes it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Annotators, and what they are asked."""

    annotators: dict[str, Utility]
    prompts: str
    """Which of PROMPTS."""
    respond: Callable[[str, random.Random], str]
    """A response of this kind."""

    def prefers(self, annotator: str, kinds: tuple[str, str]) -> bool:
        """Whether the annotator prefers the first kind."""
        first, second = (self.annotators[annotator][kind] for kind in kinds)
        return first > second

    def couples(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Couples of kinds on which not all annotators prefer the same, and those on which they do."""
        divergent, agreeing = [], []
        for kinds in itertools.combinations(next(iter(self.annotators.values())), 2):
            if any(math.isclose(liked[kinds[0]], liked[kinds[1]]) for liked in self.annotators.values()):
                continue
            votes = {self.prefers(annotator, kinds) for annotator in self.annotators}
            (agreeing if len(votes) == 1 else divergent).append(kinds)
        return divergent, agreeing


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much to write. Raises UserError, naming the flag, when it cannot be met."""

    num_pairs: int = 2400
    num_eval_pairs: int = 400
    divergent: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_pairs", "num_eval_pairs"):
            # Of any task, so that both shares of the prompts are whole.
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise UserError(f"{flag_of(name)} must be a positive multiple of 8, not {getattr(self, name)}")
        if not 0 <= self.divergent <= 1:
            raise UserError(f"--divergent must be 0 to 1, not {self.divergent}")


def _pets() -> Task:
    ranks = {"ann": "birds dogs cats rabbits", "bob": "birds cats dogs rabbits"}
    likes = {name: {kind: -float(place) for place, kind in enumerate(order.split())} for name, order in ranks.items()}
    return Task(annotators=likes, prompts="pets", respond=_praise)


def _praise(kind: str, rng: random.Random) -> str:
    names, deeds = PETS[kind]
    first, second = rng.sample(deeds.split("|"), 2)
    return f" a {rng.choice(names.split())} {first} and {second} ."


def _amounts(**peaks: float) -> Task:
    """Annotators who like an amount the more, the nearer it is to this share of all amounts."""
    last = len(AMOUNTS) - 1
    likes = {
        name: {amount: -abs(place - peak * last) for place, amount in enumerate(AMOUNTS)}
        for name, peak in peaks.items()
    }
    return Task(annotators=likes, prompts="amounts", respond=lambda kind, _: f" {kind}")


TASKS = {
    "pets": _pets(),
    "two-peaks": _amounts(ann=0.5, bob=1.0),
    "four-peaks": _amounts(ann=0.25, bob=0.5, cid=0.75, dora=1.0),
}


def make_rows(task: Task, sizes: Sizes) -> dict[str, list[dict[str, str]]]:
    """What each file holds, by its stem.

    Raises:
        UserError: the prompts do not suffice.
    """
    prompts = _prompts(task)
    random.Random(f"{sizes.seed}/prompts").shuffle(prompts)
    needed = (sizes.num_pairs + 2 * sizes.num_eval_pairs) // len(task.annotators)
    if needed > len(prompts):
        raise UserError(f"--num-pairs and --num-eval-pairs ask for {needed} prompts; there are {len(prompts)}")
    unused = iter(prompts)
    files = {}
    for split, pairs in (("train", sizes.num_pairs), ("valid", sizes.num_eval_pairs), ("test", sizes.num_eval_pairs)):
        rng = random.Random(f"{sizes.seed}/{split}")
        count = pairs // len(task.annotators)
        num_divergent = round(sizes.divergent * count)
        divergent, agreeing = task.couples()
        parts = {
            "divergent": _labelled(task, unused, num_divergent, divergent, rng),
            "agree": _labelled(task, unused, count - num_divergent, agreeing, rng),
        }
        files[split] = parts["divergent"] + parts["agree"]
        rng.shuffle(files[split])
        if split == "test":
            files |= {f"test_{name}": rows for name, rows in parts.items()}
    return files


def _prompts(task: Task) -> list[str]:
    requests, end = PROMPTS[task.prompts]
    return [" ".join(parts) + end for parts in itertools.product(requests.split("|"), PEOPLE, HOMES, PLACES)]


def _labelled(
    task: Task, unused: Iterator[str], count: int, couples: list[tuple[str, str]], rng: random.Random
) -> list[dict[str, str]]:
    """Rows of all annotators on this many prompts."""
    rows = []
    for prompt in itertools.islice(unused, count):
        kinds = rng.choice(couples)
        responses = task.respond(kinds[0], rng), task.respond(kinds[1], rng)
        for annotator in task.annotators:
            chosen, rejected = responses if task.prefers(annotator, kinds) else responses[::-1]
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator": annotator})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the flags cannot be met."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--output", type=Path, required=True, help="folder; files of the same names are replaced")
    default = Sizes()
    parser.add_argument("--num-pairs", type=int, default=default.num_pairs, help="training pairs (%(default)s)")
    parser.add_argument(
        "--num-eval-pairs",
        type=int,
        default=default.num_eval_pairs,
        help="validation, and as many test (%(default)s)",
    )
    parser.add_argument(
        "--divergent", type=float, default=default.divergent, help="share of prompts to disagree on (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of everything random (%(default)s)")
    with reports_errors():
        flags = vars(parser.parse_args(arguments))
        task, output = TASKS[flags.pop("task")], flags.pop("output")
        for stem, rows in make_rows(task, Sizes(**flags)).items():
            write_text(output / f"{stem}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            print(f"{len(rows):6} pairs in {output / stem}.jsonl")


if __name__ == "__main__":
    main()
