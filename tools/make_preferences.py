"""Write preference pairs whose hidden factors are known.

    python tools/make_preferences.py --output data/demo

The pairs are in a language of some 120 words. Two responses to a prompt tell the same and differ in factors that are a matter of words
(and so within reach of a latent code, which shifts the vocabulary):

    factor     one pole    other pole   who decides
    tone       warm        dry          taste: annotators disagree
    formality  formal      casual       taste
    length     long        short        taste
    quality    clean       garbled      all annotators prefer clean

The responses differ either in quality alone or in one, two or three tastes. Several tastes at once are what ties them together: ada likes
warm, formal and long, ben the opposite of each. Annotators come in such couples of opposite taste; an annotator whose tastes are divided
over two responses goes by the majority, then by the first taste in the table. Each prompt is judged by all annotators, on the same two
responses. Nothing in a prompt tells who judges it, unless it carries the annotator's mark.

Files: train, valid and test.jsonl (no prompt is in two of them), test_agree.jsonl and test_disagree.jsonl (test.jsonl in two: quality
and taste). Columns: prompt, chosen, rejected, annotator, and the truth: factor (tone, or tone+length, ...), pole (of the chosen
response), marked, flipped (the label is noise). The same flags give the same files, byte for byte.
"""

# ruff: noqa: SIM905 - lists of words are easier to read and to change as text

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

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
SUBJECTS = "garden river castle market forest harbor bridge tower village library kitchen meadow island station temple school".split()
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

_Topic = tuple[str, str, str, str]  # request, subject, place, time


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to write. Raises ValueError, naming the flag, when it cannot be met."""

    num_pairs: int = 2400
    """Training pairs."""
    num_eval_pairs: int = 400
    """Pairs in the validation set, and as many in the test set."""
    num_annotators: int = 2
    """Annotators; each judges every prompt."""
    agree: float = 0.25
    """Share of the prompts whose responses differ in quality, on which all agree."""
    marked: float = 0.0
    """Share of the prompts that carry the annotator's mark."""
    label_noise: float = 0.0
    """Share of the labels that are turned round."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        most = len(ANNOTATORS)
        if not 1 <= self.num_annotators <= most:
            raise ValueError(f"--num-annotators must be 1 to {most}, not {self.num_annotators}")
        for name in ("num_pairs", "num_eval_pairs"):
            pairs = getattr(self, name)
            if pairs < 1 or pairs % self.num_annotators:
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} must be a positive multiple of --num-annotators {self.num_annotators}, not {pairs}"
                )
        for name, highest in (("agree", 1), ("marked", 1), ("label_noise", 0.5)):
            share = getattr(self, name)
            if not 0 <= share <= highest:
                raise ValueError(f"--{name.replace('_', '-')} must be 0 to {highest}, not {share}")
        prompts = (self.num_pairs + 2 * self.num_eval_pairs) // self.num_annotators
        if prompts > len(_topics()):
            raise ValueError(
                f"--num-pairs and --num-eval-pairs ask for {prompts} prompts; the language has {len(_topics())}"
            )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One judged pair: a line of the files."""

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

    Annotators 2k and 2k + 1 are opposite in every taste; the bits of k turn all tastes of a couple but the first.
    """
    couple, second = divmod(annotator, 2)
    turned = [second ^ (couple << 1 >> place & 1) for place in range(len(TASTES))]
    return {taste: poles[turn] for (taste, poles), turn in zip(TASTES.items(), turned, strict=True)} | {
        "quality": "clean"
    }


def prefers_first(annotator: int, first_response: dict[str, str]) -> bool:
    """Whether the annotator prefers a response with these poles (factor -> pole) to one that has the opposite of each."""
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
    output.mkdir(parents=True, exist_ok=True)
    for stem, pairs in files.items():
        _write_lines(output / f"{stem}.jsonl", (json.dumps(asdict(pair)) for pair in pairs))
    return files


def table(files: dict[str, list[Pair]]) -> str:
    """What was written, a line a file."""
    lines = [f"{'file':<21}{'pairs':>7}{'prompts':>9}{'agree':>7}{'marked':>8}{'flipped':>9}{'words':>7}"]
    for stem, pairs in files.items():
        agree = sum(pair.factor in QUALITY for pair in pairs)
        marked, flipped = sum(pair.marked for pair in pairs), sum(pair.flipped for pair in pairs)
        prompts = len({pair.prompt.split(" : ")[-1] for pair in pairs})
        words = sum(len(pair.chosen.split()) for pair in pairs) / max(1, len(pairs))
        lines.append(f"{stem + '.jsonl':<21}{len(pairs):>7}{prompts:>9}{agree:>7}{marked:>8}{flipped:>9}{words:>7.1f}")
    return "\n".join(lines)


def _topics() -> list[_Topic]:
    return list(itertools.product(REQUESTS, SUBJECTS, PLACES, TIMES))


def _make_split(unused: Iterator[_Topic], size: int, recipe: Recipe, rng: random.Random) -> list[Pair]:
    prompts = size // recipe.num_annotators
    agree, marked = _exact_share(recipe.agree, prompts, rng), _exact_share(recipe.marked, prompts, rng)
    flipped = iter(_exact_share(recipe.label_noise, size, rng))
    taste_sets = itertools.cycle(
        [taste for size in range(len(TASTES)) for taste in itertools.combinations(TASTES, size + 1)]
    )
    pairs = []
    for all_agree, has_mark in zip(agree, marked, strict=True):
        topic, factors = next(unused), tuple(QUALITY) if all_agree else next(taste_sets)
        # The poles in which the first response differs from the second: what somebody likes.
        liked = liked_poles(rng.randrange(recipe.num_annotators))
        first = {factor: liked[factor] for factor in factors}
        responses = _respond_twice(topic, first, rng)
        pairs += [
            _judge(topic, first, responses, index, has_mark, next(flipped)) for index in range(recipe.num_annotators)
        ]
    rng.shuffle(pairs)
    return pairs


def _exact_share(share: float, count: int, rng: random.Random) -> list[bool]:
    """`count` answers in random order, of which this share is yes."""
    answers = [index < round(share * count) for index in range(count)]
    rng.shuffle(answers)
    return answers


def _judge(
    topic: _Topic, first: dict[str, str], responses: tuple[str, str], index: int, marked: bool, flipped: bool
) -> Pair:
    """The pair as annotator `index` labels it."""
    chosen, rejected, poles = *responses, first
    if prefers_first(index, first) == flipped:
        chosen, rejected, poles = rejected, chosen, _opposite(first)
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
    return {factor: POLES[factor][pole == POLES[factor][0]] for factor, pole in poles.items()}


def _respond_twice(topic: _Topic, first: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """Two responses that say the same: the first with these poles, the second with their opposites. In all other factors they are alike."""
    common = {taste: rng.choice(poles) for taste, poles in TASTES.items()} | {"quality": "clean"}
    frame = (rng.choice(VERBS), rng.choice(SIDES), rng.choice(VERBS), rng.choice(MANNERS))
    return _respond(topic, frame, common | first, rng), _respond(topic, frame, common | _opposite(first), rng)


def _respond(topic: _Topic, frame: tuple[str, str, str, str], poles: dict[str, str], rng: random.Random) -> str:
    """A response of 10 or 16 words; it begins with a space, so that prompt + response is text."""
    _, subject, place, time = topic
    verb, side, second_verb, manner = frame
    adjectives = ADJECTIVES[poles["tone"]]
    first, second = rng.sample(adjectives, 2)
    opener, closer = rng.choice(OPENERS[poles["formality"]]), rng.choice(CLOSERS[poles["formality"]])
    if poles["quality"] == "garbled":
        verb, side, second_verb, manner = rng.sample(GARBAGE, 4)
    words = [opener, "the", first, subject, verb, side, "the", second, place]
    if poles["length"] == "long":
        words += ["and", "it", second_verb, manner, "every", time]
    return " " + " ".join([*words, closer])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)
    unfinished.replace(path)


def main(arguments: list[str] | None = None) -> None:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Recipe()
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write into; files of the same names are replaced"
    )
    parser.add_argument("--num-pairs", type=int, default=default.num_pairs, help="training pairs (%(default)s)")
    parser.add_argument(
        "--num-eval-pairs",
        type=int,
        default=default.num_eval_pairs,
        help="validation pairs, and test pairs (%(default)s)",
    )
    parser.add_argument(
        "--num-annotators", type=int, default=default.num_annotators, help="each judges every prompt (%(default)s)"
    )
    parser.add_argument(
        "--agree", type=float, default=default.agree, help="share of prompts on which all agree (%(default)s)"
    )
    parser.add_argument(
        "--marked", type=float, default=default.marked, help="share of prompts with the annotator's mark (%(default)s)"
    )
    parser.add_argument(
        "--label-noise", type=float, default=default.label_noise, help="share of labels turned round (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of everything random (%(default)s)")
    flags = vars(parser.parse_args(arguments))
    output = flags.pop("output")
    if output.exists() and not output.is_dir():
        parser.error(f"--output {output} is not a folder")
    try:
        recipe = Recipe(**flags)
    except ValueError as error:
        parser.error(str(error))
    print(table(write_preferences(recipe, output)))


if __name__ == "__main__":
    main()
