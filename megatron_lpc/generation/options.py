"""Options of `megatron_lpc.generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lpc.command_line import ArgumentParser, UserError, flag_of


class GenerationError(UserError):
    """The responses cannot be generated; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 8
    """Prompts that are answered at the same time."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """The command line, checked."""

    load: Path | None
    """Folder of a checkpoint or a run, which is exported first."""
    model: Path | None
    """Folder of an exported model. Either this or `load` is set."""
    latents: tuple[str, ...]
    max_codes: int
    """Most codes that the latent `codes` stands for."""
    texts: tuple[str, ...]
    prompts: str | None
    """File or Hub name of prompts. Either this or `texts` is set."""
    num_prompts: int | None
    chat: bool
    """Whether texts are the user's turn of a chat."""
    show: int
    """Prompts whose responses are printed."""
    output: Path | None
    device: str | None
    trust_remote_code: bool
    """Whether code that the tokenizer comes with may run."""
    sampling: Sampling


_DEFAULT = Sampling()
_MAX_CODES = 8
_SHOW = 3


def parse_generate_command(argv: Sequence[str]) -> GenerateOptions:
    """The options of the program.

    Args:
        argv: the command line without the program's name.

    Raises:
        GenerationError: an option is unknown, ill-typed, out of range, without effect or missing.
    """
    given = vars(_parser().parse_args(list(argv)))
    _check(given)
    sampling = {name: given[name] for name in vars(_DEFAULT) if name in given}
    return GenerateOptions(
        load=given.get("load"),
        model=given.get("model"),
        latents=tuple(given.get("latent", ())),
        max_codes=given.get("max_codes", _MAX_CODES),
        texts=tuple(given.get("prompt", ())),
        prompts=given.get("prompts"),
        num_prompts=given.get("num_prompts"),
        chat=given.get("chat", False),
        show=given.get("show", _SHOW if "prompts" in given else len(given.get("prompt", ()))),
        output=given.get("output"),
        device=given.get("device"),
        trust_remote_code=given.get("trust_remote_code", False),
        sampling=Sampling(**sampling),
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m megatron_lpc.generate",
        usage="%(prog)s (--load RUN | --model EXPORT) (--prompt TEXT ... | --prompts FILE) [--latent LATENT ...]",
        description="Responses under several latents, side by side, and how latents change length and style.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        error_class=GenerationError,
    )
    add = parser.add_argument
    add("--load", type=Path, metavar="RUN", help="a run or one checkpoint; it is exported to a temporary folder")
    add("--model", type=Path, metavar="EXPORT", help="the folder of an exported model")
    add("--prompt", action="append", metavar="TEXT", help="a prompt, as it is; may be repeated")
    add("--prompts", metavar="FILE", help="prompts: column `prompt`, text or chat messages; repeated ones count once")
    add("--num-prompts", type=int, metavar="N", help="with --prompts: the first N (all)")
    add("--chat", action="store_true", help="prompts that are text are the user's turn of a chat")
    add(
        "--latent",
        action="append",
        metavar="LATENT",
        help="prior (its mean), prior_sample, code:K, codes (the active ones), none, or a file that "
        "megatron_lpc.personalize wrote; may be repeated, others are compared with the first (prior)",
    )
    add("--max-codes", type=int, metavar="N", help=f"with --latent codes: at most so many of them ({_MAX_CODES})")
    add("--max-new-tokens", type=int, metavar="N", help=f"longest response ({_DEFAULT.max_new_tokens})")
    add(
        "--temperature",
        type=float,
        metavar="X",
        help=f"of the tokens' probabilities; 0 takes the most probable token ({_DEFAULT.temperature:g})",
    )
    add("--top-p", type=float, metavar="X", help="draw from the most probable tokens of this probability together (1)")
    add("--seed", type=int, metavar="N", help=f"of what is drawn, the same for each latent ({_DEFAULT.seed})")
    add("--batch-size", type=int, metavar="N", help=f"prompts at the same time ({_DEFAULT.batch_size})")
    add("--trust-remote-code", action="store_true", help="run the code that the tokenizer comes with; read it first")
    add("--device", metavar="DEVICE", help="such as cpu or cuda:1 (cuda where there is one)")
    add("--show", type=int, metavar="N", help=f"print the responses to N prompts ({_SHOW} of --prompts)")
    add("--output", type=Path, metavar="FILE.jsonl", help="write all responses")
    return parser


def _check(given: dict[str, object]) -> None:
    if ("load" in given) == ("model" in given):
        raise GenerationError("--load RUN or --model EXPORT: give one of them")
    if ("prompt" in given) == ("prompts" in given):
        raise GenerationError("--prompt TEXT or --prompts FILE: give one of them")
    if "num_prompts" in given and "prompts" not in given:
        raise GenerationError("--num-prompts: has no effect without --prompts")
    latents = given.get("latent", [])
    assert isinstance(latents, list)
    if repeated := {latent for latent in latents if latents.count(latent) > 1}:
        raise GenerationError(f"--latent {min(repeated)}: is given twice")
    if "max_codes" in given and "codes" not in latents:
        raise GenerationError("--max-codes: has no effect without --latent codes")
    for name, least in (("num_prompts", 1), ("max_codes", 1), ("max_new_tokens", 1), ("batch_size", 1), ("show", 0)):
        value = given.get(name, least)
        assert isinstance(value, int)
        if value < least:
            raise GenerationError(f"{flag_of(name)} {value}: must be at least {least}")
    temperature, top_p = given.get("temperature", 0.0), given.get("top_p", 1.0)
    assert isinstance(temperature, float)
    assert isinstance(top_p, float)
    if not temperature >= 0:
        raise GenerationError(f"--temperature {temperature:g}: must be at least 0")
    if not 0 < top_p <= 1:
        raise GenerationError(f"--top-p {top_p:g}: must be above 0 and at most 1")
    if "top_p" in given and temperature == 0:
        raise GenerationError("--top-p: has no effect at --temperature 0; set a temperature")
    if "seed" in given and temperature == 0 and "prior_sample" not in latents:
        raise GenerationError("--seed: has no effect, for nothing is drawn at --temperature 0 without prior_sample")
