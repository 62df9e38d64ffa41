"""Write preference pairs whose hidden factors are known.

    python tools/make_preferences.py --output data/demo

The pairs are in a language of some 120 words. Two responses to a prompt tell the same and differ in factors that are a
matter of words (and so within reach of a latent code, which shifts the logits of the vocabulary):

    factor     one pole    other pole   who decides
    tone       warm        dry          taste: annotators disagree
    formality  formal      casual       taste
    length     long        short        taste
    quality    clean       garbled      all annotators prefer clean

The responses differ either only in quality or in one, two or three tastes. Several tastes at once are what ties them
together: ada likes warm, formal and long, ben the opposite of each. Annotators come in such couples of opposite taste;
one whose tastes are divided over two responses goes by the majority, then by the first taste in the table. All
annotators label each prompt, on the same two responses. Nothing in a prompt tells who labels it, unless it carries the
annotator's mark.

Files: train, valid and test.jsonl (no prompt is in two of them), test_agree.jsonl and test_disagree.jsonl (the two
parts of test.jsonl: quality and taste). Columns: prompt, chosen, rejected, annotator, and the truth: factor (tone, or
tone+length, ...), pole (of the chosen response), marked, flipped (the label is noise). The same flags give the same
files, byte for byte.
"""

# ruff: noqa: SIM905 - lists of words are easier to read and to change as text

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_lpc.command_line import ArgumentParser, UserError, flag_of, reports_errors
from megatron_lpc.files import write_text

TASTES = {"tone": ("warm", "dry"), "formality": ("formal", "casual"), "length": ("long", "short")}
QUALITY = {"quality": ("clean", "garbled")}
POLES = TASTES | QUALITY
ANNOTATORS = ("ada", "ben", "cleo", "dan", "eve", "finn", "gina", "hugo")

REQUESTS = (
    "describe",
    "explain",
    "tell me about",
    "write about",
    "say something about",
    "help me see",
    "report on",
    "what about",
)
SUBJECTS = (
    "garden river castle market forest harbor bridge tower village library kitchen meadow island station temple school"
).split()
PLACES = "hill lake road wall valley square coast field canal gate shore cliff".split()
TIMES = "morning evening winter summer spring autumn".split()
VERBS = "stands rests waits sits lies remains grows sleeps stays lives".split()
SIDES = "near beside behind above below beyond".split()
MANNERS = "slowly quietly often always still again".split()
ADJECTIVES = {
    "warm": "lovely wonderful charming sweet sunny gentle joyful cozy".split(),
    "dry": "plain gray bare cold dull stiff empty blank".split(),
}
OPENERS = {"formal": "indeed certainly accordingly furthermore".split(), "casual": "yeah well hey okay".split()}
CLOSERS = {"formal": "respectfully sincerely faithfully regards".split(), "casual": "buddy cheers dude folks".split()}
GARBAGE = "um er blah hmm uh meh".split()

_COUPLES = ((0, 0), (1, 1), (1, 0), (0, 1))
"""Couple of annotators -> whether formality and length are flipped. The second couple flips both: then any two of the
first four annotators disagree on at least three of the seven sets of tastes."""

_Topic = tuple[str, str, str, str]  # request, subject, place, time


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to write. Raises UserError, naming the flag, when it cannot be met."""

    num_pairs: int = 2400
    """Training pairs."""
    num_eval_pairs: int = 400
    """Pairs in the validation set, and as many in the test set."""
    num_annotators: int = 2
    """Annotators; each labels every prompt."""
    agree: float = 0.25
    """Share of the prompts whose responses differ in quality, on which all agree."""
    marked: float = 0.0
    """Share of the prompts that carry the annotator's mark."""
    label_noise: float = 0.0
    """Share of the labels that are flipped."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        most = len(ANNOTATORS)
        if not 1 <= self.num_annotators <= most:
            raise UserError(f"--num-annotators must be 1 to {most}, not {self.num_annotators}")
        for name in ("num_pairs", "num_eval_pairs"):
            pairs = getattr(self, name)
            if pairs < 1 or pairs % self.num_annotators:
                flag = flag_of(name)
                raise UserError(
                    f"{flag} must be a positive multiple of --num-annotators {self.num_annotators}, not {pairs}"
                )
        for name, highest in (("agree", 1), ("marked", 1), ("label_noise", 0.5)):
            share = getattr(self, name)
            if not 0 <= share <= highest:
                raise UserError(f"--{name.replace('_', '-')} must be 0 to {highest}, not {share}")
        prompts = (self.num_pairs + 2 * self.num_eval_pairs) // self.num_annotators
        if prompts > len(_topics()):
            raise UserError(
                f"--num-pairs and --num-eval-pairs ask for {prompts} prompts; the language has {len(_topics())}"
            )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One labelled pair: a line of the files."""

    prompt: str
    chosen: str
    rejected: str
    annotator: str
    factor: str
    pole: str
    marked: bool
    flipped: bool


def liked_poles(annotator: int) -> dict[str, str]:
    """The pole of every factor that this annotator likes.

    Annotators 2k and 2k + 1 are opposite in every taste. Couples differ in which of the other tastes go with the first.
    """
    couple, second = divmod(annotator, 2)
    flips = (0, *_COUPLES[couple])
    liked = {taste: poles[second ^ flip] for (taste, poles), flip in zip(TASTES.items(), flips, strict=True)}
    return liked | {"quality": "clean"}


def prefers_first(annotator: int, first_response: dict[str, str]) -> bool:
    """Whether the annotator prefers a response with these poles (by factor) to one that has the opposite of each."""
    liked = liked_poles(annotator)
    votes = [liked[factor] == pole for factor, pole in first_response.items()]
    return sum(votes) + 0.5 * votes[0] > len(votes) / 2


def make_pairs(recipe: Recipe) -> dict[str, list[Pair]]:
    """The splits `train`, `valid` and `test`, each in random order."""
    topics = _topics()
    random.Random(f"{recipe.seed}/prompts").shuffle(topics)
    unused = iter(topics)
    sizes = {"train": recipe.num_pairs, "valid": recipe.num_eval_pairs, "test": recipe.num_eval_pairs}
    return {
        split: _make_split(unused, size, recipe, random.Random(f"{recipe.seed}/{split}"))
        for split, size in sizes.items()
    }


def write_preferences(recipe: Recipe, output: Path) -> dict[str, list[Pair]]:
    """Write all files into the folder `output`, and give what each of the .jsonl files holds, by its stem."""
    files = make_pairs(recipe)
    files["test_agree"] = [pair for pair in files["test"] if pair.factor in QUALITY]
    files["test_disagree"] = [pair for pair in files["test"] if pair.factor not in QUALITY]
    for stem, pairs in files.items():
        lines = (json.dumps(asdict(pair)) + "\n" for pair in pairs)
        write_text(output / f"{stem}.jsonl", "".join(lines))
    return files


def table(files: dict[str, list[Pair]]) -> str:
    """What was written, one line for each file."""
    lines = [f"{'file':<21}{'pairs':>7}{'prompts':>9}{'agree':>7}{'marked':>8}{'flipped':>9}{'words':>7}"]
    for stem, pairs in files.items():
        agree = sum(pair.factor in QUALITY for pair in pairs)
        marked = sum(pair.marked for pair in pairs)
        flipped = sum(pair.flipped for pair in pairs)
        prompts = len({pair.prompt.split(" : ")[-1] for pair in pairs})
        words = sum(len(pair.chosen.split()) for pair in pairs) / max(1, len(pairs))
        lines.append(f"{stem + '.jsonl':<21}{len(pairs):>7}{prompts:>9}{agree:>7}{marked:>8}{flipped:>9}{words:>7.1f}")
    return "\n".join(lines)


def _topics() -> list[_Topic]:
    return list(itertools.product(REQUESTS, SUBJECTS, PLACES, TIMES))


def _make_split(unused: Iterator[_Topic], size: int, recipe: Recipe, rng: random.Random) -> list[Pair]:
    prompts = size // recipe.num_annotators
    agree = _exact_share(recipe.agree, prompts, rng)
    marked = _exact_share(recipe.marked, prompts, rng)
    flipped = iter(_exact_share(recipe.label_noise, size, rng))
    taste_sets = itertools.cycle(_taste_sets())
    pairs = []
    for all_agree, has_mark in zip(agree, marked, strict=True):
        topic = next(unused)
        factors = tuple(QUALITY) if all_agree else next(taste_sets)
        # The poles in which the first response differs from the second: what some annotator likes.
        liked = liked_poles(rng.randrange(recipe.num_annotators))
        first = {factor: liked[factor] for factor in factors}
        responses = _respond_twice(topic, first, rng)
        annotators = range(recipe.num_annotators)
        pairs += [_label(topic, first, responses, index, has_mark, next(flipped)) for index in annotators]
    rng.shuffle(pairs)
    return pairs


def _taste_sets() -> list[tuple[str, ...]]:
    """All sets of one, two or three tastes."""
    return [tastes for size in range(len(TASTES)) for tastes in itertools.combinations(TASTES, size + 1)]


def _exact_share(share: float, count: int, rng: random.Random) -> list[bool]:
    """`count` answers in random order, of which this share is yes."""
    answers = [index < round(share * count) for index in range(count)]
    rng.shuffle(answers)
    return answers


def _label(
    topic: _Topic, first: dict[str, str], responses: tuple[str, str], index: int, marked: bool, flipped: bool
) -> Pair:
    """The pair as annotator `index` labels it."""
    chosen, rejected = responses
    poles = first
    if prefers_first(index, first) == flipped:
        chosen, rejected = rejected, chosen
        poles = _opposite(first)
    request, subject, place, time = topic
    mark = f"for {ANNOTATORS[index]} : " if marked else ""
    return Pair(
        prompt=f"{mark}{request} the {subject} by the {place} in {time} .",
        chosen=chosen,
        rejected=rejected,
        annotator=ANNOTATORS[index],
        factor="+".join(poles),
        pole="+".join(poles.values()),
        marked=marked,
        flipped=flipped,
    )


def _opposite(poles: dict[str, str]) -> dict[str, str]:
    opposite = {}
    for factor, pole in poles.items():
        first, second = POLES[factor]
        opposite[factor] = second if pole == first else first
    return opposite


def _respond_twice(topic: _Topic, first: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """Two responses that say the same: the first with these poles, the second with their opposites.

    In all other factors they are alike.
    """
    common = {taste: rng.choice(poles) for taste, poles in TASTES.items()} | {"quality": "clean"}
    frame = (rng.choice(VERBS), rng.choice(SIDES), rng.choice(VERBS), rng.choice(MANNERS))
    return _respond(topic, frame, common | first, rng), _respond(topic, frame, common | _opposite(first), rng)


def _respond(topic: _Topic, frame: tuple[str, str, str, str], poles: dict[str, str], rng: random.Random) -> str:
    """A response of 10 or 16 words; it begins with a space, so that prompt + response is text."""
    _, subject, place, time = topic
    verb, side, second_verb, manner = frame
    adjectives = ADJECTIVES[poles["tone"]]
    first, second = rng.sample(adjectives, 2)
    opener = rng.choice(OPENERS[poles["formality"]])
    closer = rng.choice(CLOSERS[poles["formality"]])
    if poles["quality"] == "garbled":
        verb, side, second_verb, manner = rng.sample(GARBAGE, 4)
    words = [opener, "the", first, subject, verb, side, "the", second, place]
    if poles["length"] == "long":
        words += ["and", "it", second_verb, manner, "every", time]
    return " " + " ".join([*words, closer])


def _parser() -> ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder; files of the same names are replaced")
    helps = {
        "num_pairs": "training pairs",
        "num_eval_pairs": "validation pairs, and as many test pairs",
        "num_annotators": "each labels every prompt",
        "agree": "share of prompts on which all agree",
        "marked": "share of prompts with the annotator's mark",
        "label_noise": "share of labels that are flipped",
        "seed": "seed of everything random",
    }
    for name, default in asdict(Recipe()).items():
        parser.add_argument(flag_of(name), type=type(default), default=default, help=f"{helps[name]} (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the flags cannot be met."""
    with reports_errors():
        flags = vars(_parser().parse_args(arguments))
        output = flags.pop("output")
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is not a folder")
        print(table(write_preferences(Recipe(**flags), output)))


if __name__ == "__main__":
    main()
