"""A preference pair becomes token ids that fit the model.

Truncation is as close to TRL's as the one condition of the method allows: both responses follow the same prompt, since
h_x is one token.
1. The prompt is cut to `max_prompt_length`, keeping the end that `truncation_mode` names.
2. Where the prompt and the longer response still exceed `max_length`
   - `keep_start`: the first `max_length` tokens of prompt + response stay, so responses lose their end; a prompt that
     fills `max_length` leaves no response and makes the row unusable. As TRL.
   - `keep_end`: the prompt loses its start by the excess of the longer response, down to one token; what then still
     exceeds is cut from the end of the responses. TRL cuts each prompt + response by itself, which would give the
     responses different prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.pairs import Pair
from megatron_lpc.data.tokenizer import Tokenizer


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
    """Token ids of `pair`: at most `max_length` for prompt and response together, each tokenized by itself.

    Raises:
        BadRow: the chat cannot be rendered, no tokens are left of the prompt or a response, or both responses are equal
            after the cut.
        LookupError: there are chat messages but no chat template.
    """
    if isinstance(pair.prompt, str):
        prompt, chosen, rejected = _encode_text(pair, tokenizer)
    else:
        prompt, chosen, rejected = _encode_chat(pair, tokenizer)
    prompt, chosen, rejected = _truncate(prompt, chosen, rejected, config)
    if not (chosen and rejected):
        raise pair.location.bad_row(
            f"only the prompt is left after truncation: it fills the {config.max_length} tokens of --max-length",
            "Raise --max-length, lower --max-prompt-length, or set --truncation-mode keep_end",
        )
    if chosen == rejected:
        raise pair.location.bad_row(
            "chosen and rejected are equal as tokens after truncation", "Raise --max-length or remove the row"
        )
    return EncodedPair(prompt, chosen, rejected, pair.group)


def _encode_text(pair: Pair, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """BOS, where the tokenizer uses one, before the prompt; EOS behind each response that does not end in one."""
    prompt = tokenizer.encode(str(pair.prompt), add_bos=True)
    chosen = tokenizer.encode(str(pair.chosen))
    rejected = tokenizer.encode(str(pair.rejected))
    _check_tokens(pair, tokenizer, prompt, chosen, rejected)
    return prompt, _with_eos(chosen, tokenizer.eos_id), _with_eos(rejected, tokenizer.eos_id)


def _with_eos(tokens: list[int], eos_id: int) -> list[int]:
    return tokens if tokens[-1] == eos_id else [*tokens, eos_id]


def _encode_chat(pair: Pair, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """The special tokens that the template writes, and no others."""
    prompt, chosen, rejected = (tokenizer.encode(text) for text in _render(pair, tokenizer))
    _check_tokens(pair, tokenizer, prompt, chosen, rejected)
    return prompt, chosen, rejected


def _render(pair: Pair, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """The texts of a pair of chats: the prompt up to where the assistant begins, and what the responses add to it."""
    assert not isinstance(pair.prompt, str)
    try:
        prompt = tokenizer.render_chat(pair.prompt, add_generation_prompt=True)
        with_chosen = tokenizer.render_chat([*pair.prompt, *pair.chosen])
        with_rejected = tokenizer.render_chat([*pair.prompt, *pair.rejected])
    except ValueError as error:
        raise pair.location.bad_row(
            str(error), "Fix the messages, or give another template with --chat-template"
        ) from error
    if not (with_chosen.startswith(prompt) and with_rejected.startswith(prompt)):
        raise pair.location.bad_row(
            "the chat template writes the prompt differently with and without a response",
            "Give a template that does not, with --chat-template: "
            "else training and generation would see different prompts",
        )
    return prompt, with_chosen[len(prompt) :], with_rejected[len(prompt) :]


def _check_tokens(pair: Pair, tokenizer: Tokenizer, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    """Prompt and responses must hold more than BOS and EOS."""
    special = (tokenizer.bos_id, tokenizer.eos_id)
    for name, tokens in (("prompt", prompt), ("chosen response", chosen), ("rejected response", rejected)):
        if all(token in special for token in tokens):
            raise pair.location.bad_row(
                f"the {name} has no tokens", "Fill it in, or use a tokenizer that knows its characters"
            )


def _truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], config: DataConfig
) -> tuple[list[int], list[int], list[int]]:
    keep_end = config.truncation_mode == "keep_end"
    if config.max_prompt_length is not None:
        prompt = prompt[-config.max_prompt_length :] if keep_end else prompt[: config.max_prompt_length]
    if keep_end:
        longer_response = max(len(chosen), len(rejected))
        excess = max(len(prompt) + longer_response - config.max_length, 0)
        prompt = prompt[min(excess, len(prompt) - 1) :]
    room = max(config.max_length - len(prompt), 0)
    return prompt, chosen[:room], rejected[:room]
