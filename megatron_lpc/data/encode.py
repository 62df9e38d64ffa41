"""A preference pair becomes token ids that fit the model.

Truncation, closest to TRL under the one condition of the method that both responses follow the same prompt (h_x is one token):
1. The prompt is cut to `max_prompt_length`, keeping the end that `truncation_mode` names.
2. If the prompt and the longer response still exceed `max_length`
   - `keep_start`: the first `max_length` tokens of each row stay, so responses lose their end; a prompt that fills `max_length`
     leaves no response and makes the row unusable. As TRL.
   - `keep_end`: the prompt loses its start by the excess of the longer response, down to one token; what then still exceeds is
     cut from the end of the responses. TRL cuts each row by itself, which would give the responses different prompts.
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
    """Token ids of `pair`, at most `max_length` for prompt and response together; prompt and responses are tokenized apart.

    Raises BadRow when the chat cannot be rendered, nothing is left of a side, or the cut makes the responses equal;
    LookupError when there are chat messages but no chat template.
    """
    texts = _texts(pair, tokenizer)
    is_chat = not isinstance(pair.prompt, str)
    # A template writes its own special tokens.
    prompt, chosen, rejected = tokenizer.encode(texts[0], add_bos=not is_chat), *map(tokenizer.encode, texts[1:])
    for name, tokens in (("prompt", prompt), ("chosen response", chosen), ("rejected response", rejected)):
        if all(token in (tokenizer.bos_id, tokenizer.eos_id) for token in tokens):
            raise pair.location.bad_row(
                f"the {name} has no tokens", "Fill it in, or use a tokenizer that knows its characters"
            )
    if not is_chat:
        chosen, rejected = (
            tokens if tokens[-1] == tokenizer.eos_id else [*tokens, tokenizer.eos_id] for tokens in (chosen, rejected)
        )
    prompt, chosen, rejected = _cut(prompt, chosen, rejected, config)
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


def _texts(pair: Pair, tokenizer: Tokenizer) -> tuple[str, str, str]:
    if isinstance(pair.prompt, str):
        return str(pair.prompt), str(pair.chosen), str(pair.rejected)
    try:
        prompt = tokenizer.render_chat(pair.prompt, add_generation_prompt=True)
        chosen, rejected = (
            tokenizer.render_chat([*pair.prompt, *response]) for response in (pair.chosen, pair.rejected)
        )
    except ValueError as error:
        raise pair.location.bad_row(
            str(error), "Mend the messages, or give another template with --chat-template"
        ) from error
    if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        raise pair.location.bad_row(
            "the chat template writes the prompt differently with and without a response",
            "Give a template that does not, with --chat-template: else training and generation would see different prompts",
        )
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _cut(
    prompt: list[int], chosen: list[int], rejected: list[int], config: DataConfig
) -> tuple[list[int], list[int], list[int]]:
    keep_end = config.truncation_mode == "keep_end"
    if config.max_prompt_length is not None:
        prompt = prompt[-config.max_prompt_length :] if keep_end else prompt[: config.max_prompt_length]
    if keep_end:
        excess = len(prompt) + max(len(chosen), len(rejected)) - config.max_length
        prompt = prompt[min(max(excess, 0), len(prompt) - 1) :]
    room = max(config.max_length - len(prompt), 0)
    return prompt, chosen[:room], rejected[:room]
