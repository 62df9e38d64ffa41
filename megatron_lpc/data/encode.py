"""A preference pair becomes token ids.

Prompt and response are tokenized together and then split, as TRL's `DPOTrainer` does: tokenized apart, the tokens at
the seam would be others than those that the model meets in texts ("▁ 4" in place of "4").
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.pairs import Pair
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.data.truncation import truncate

logger = logging.getLogger(__name__)

_topics_said: set[str] = set()

_PLACEHOLDER = "\ue000"
"""A character for private use, which no prompt begins with."""


@dataclass(frozen=True)
class EncodedPair:
    """Token ids; a response ends in EOS (text) or in what its chat template writes, unless it was cut."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    group: str | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen and rejected."""
        return len(self.prompt), len(self.chosen), len(self.rejected)


def encode_pair(pair: Pair, tokenizer: Tokenizer, config: DataConfig) -> EncodedPair:
    """Token ids of `pair`: at most `max_length` for prompt and response together.

    Where the prompt's own tokens are not how prompt + response begin, the responses start at the first token that
    differs, and what the prompt had from there on is left out. As in TRL; said once.

    Raises:
        BadRow: the chat cannot be rendered, no tokens are left of the prompt or a response, or both responses are equal
            after the cut.
        LookupError: there are chat messages but no chat template.
    """
    if isinstance(pair.prompt, str):
        prompt, *wholes = _encode_texts(pair, tokenizer)
    else:
        prompt, *wholes = _encode_chats(pair, tokenizer)
    end = min(common_length(prompt, whole) for whole in wholes)
    if end < len(prompt):
        _say_once(
            "seam",
            "%s:%d: the end of the prompt, %r, is left out, for prompt + response have other tokens there: the texts "
            "merge at the seam, or the chat template writes a prompt differently without a response. Training sees "
            "another context than generation; end prompts where a token ends, or change --chat-template. "
            "Said once, though other rows may be alike.",
            pair.location.file,
            pair.location.line,
            tokenizer.decode(prompt[end:], show_special=True),
        )
    prompt, chosen, rejected = prompt[:end], *(whole[end:] for whole in wholes)
    _check_tokens(pair, tokenizer, prompt, chosen, rejected)
    bos_length = len(tokenizer.prefix) if prompt[: len(tokenizer.prefix)] == tokenizer.prefix else 0
    opening = partial(_opening_length, pair, tokenizer, prompt)
    encoded = EncodedPair(*truncate(prompt, chosen, rejected, config, bos_length, opening), pair.group)
    if not (encoded.chosen and encoded.rejected):
        raise pair.location.bad_row(
            f"only the prompt is left after truncation: it fills the {config.max_length} tokens of --max-length",
            "Raise --max-length, lower --max-prompt-length, or set --truncation-mode keep_end",
        )
    if encoded.chosen == encoded.rejected:
        raise pair.location.bad_row(
            "chosen and rejected are equal as tokens after truncation", "Raise --max-length or remove the row"
        )
    return encoded


def _encode_texts(pair: Pair, tokenizer: Tokenizer) -> list[list[int]]:
    """Tokens of the prompt, of prompt + chosen and of prompt + rejected.

    BOS, where the tokenizer uses one, goes before the prompt, EOS behind each response; neither stands twice.
    """
    prompt = str(pair.prompt)
    wholes = [prompt + _with_eos(str(response), tokenizer.eos_token) for response in (pair.chosen, pair.rejected)]
    return [tokenizer.encode(text, add_bos=True) for text in (prompt, *wholes)]


def _with_eos(response: str, eos_token: str) -> str:
    return response if response.endswith(eos_token) else response + eos_token


def _encode_chats(pair: Pair, tokenizer: Tokenizer) -> list[list[int]]:
    """As `_encode_texts`, with the special tokens that the template writes, and no others."""
    assert not isinstance(pair.prompt, str)
    wholes = [[*pair.prompt, *response] for response in (pair.chosen, pair.rejected)]
    arguments = pair.template_arguments
    try:
        texts = [tokenizer.render_chat(pair.prompt, arguments, add_generation_prompt=True)]
        texts += [tokenizer.render_chat(messages, arguments) for messages in wholes]
    except ValueError as error:
        raise pair.location.bad_row(
            str(error), "Fix the messages, or give another template with --chat-template"
        ) from error
    for name in arguments:
        if name not in str(tokenizer.template):
            _say_once(
                f"{name} of {tokenizer.name}",
                "%s:%d: the chat template of %s does not read `%s`, so the column changes nothing. Give one that "
                "does with --chat-template. Said once, though other rows may be alike.",
                pair.location.file,
                pair.location.line,
                tokenizer.name,
                name,
            )
    if not texts[1].rstrip().endswith(tokenizer.special_tokens):
        _say_once(
            f"end of {tokenizer.name}",
            "the chat template of %s ends a response (%r) without a special token, so training never shows where to "
            "stop. Give a template that writes one, such as %s, with --chat-template.",
            tokenizer.name,
            texts[1][-20:],
            tokenizer.eos_token,
        )
    return [tokenizer.encode(text) for text in texts]


def _opening_length(pair: Pair, tokenizer: Tokenizer, prompt: list[int], room: int) -> int:
    """Tokens of a chat that come before the text of its first turn that is not the system's.

    0 where they would leave nothing else of a prompt of `room` tokens; said once.
    """
    if isinstance(pair.prompt, str):
        return 0
    turns = [number for number, message in enumerate(pair.prompt) if message["role"] not in ("system", "developer")]
    if not turns:
        return 0
    first = turns[0]
    messages = [*pair.prompt[:first], {"role": pair.prompt[first]["role"], "content": _PLACEHOLDER}]
    try:
        opening, found, _ = tokenizer.render_chat(messages, pair.template_arguments).partition(_PLACEHOLDER)
    except ValueError:  # The template wants further turns.
        return 0
    length = common_length(tokenizer.encode(opening), prompt) if found else 0
    if length < room:
        return length
    _say_once(
        "opening",
        "%s:%d: what stands before the first turn (the system's turn, the tools) is cut, for it takes %d tokens and "
        "--max-length and --max-prompt-length leave the prompt %d. Raise them. Said once, though other rows may be "
        "alike.",
        pair.location.file,
        pair.location.line,
        length,
        room,
    )
    return 0


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of tokens, or letters of texts, in which both begin alike."""
    return next(
        (length for length, both in enumerate(zip(first, second, strict=False)) if both[0] != both[1]),
        min(len(first), len(second)),
    )


def _check_tokens(pair: Pair, tokenizer: Tokenizer, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    """Prompt and responses must hold more than BOS and EOS."""
    special = {*tokenizer.prefix, tokenizer.eos_id}
    for name, tokens in (("prompt", prompt), ("chosen response", chosen), ("rejected response", rejected)):
        if special.issuperset(tokens):
            raise pair.location.bad_row(
                f"the {name} has no tokens", "Fill it in, or use a tokenizer that knows its characters"
            )


def _say_once(topic: str, message: str, *arguments: object) -> None:
    """Log a warning of a topic unless this process has done so."""
    if topic not in _topics_said:
        _topics_said.add(topic)
        logger.warning(message, *arguments)
