"""The prompts, as text or chat messages, and their tokens: those that training has before a response."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_lpc.command_line import warn
from megatron_lpc.data.columns import Content, read_content
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.source import Location, Row, read_rows
from megatron_lpc.data.template_columns import check_other_columns, read_system, read_template_arguments
from megatron_lpc.generation.open_export import OpenExport
from megatron_lpc.generation.options import GenerateOptions, GenerationError


@dataclass(frozen=True)
class Prompt:
    """What a response is to."""

    content: Content
    token_ids: list[int]

    @property
    def text(self) -> str:
        """For readers: the text, or the last turn."""
        return self.content if isinstance(self.content, str) else str(self.content[-1].get("content", ""))


def read_prompts(options: GenerateOptions, opened: OpenExport) -> list[Prompt]:
    """Different prompts, at least one.

    Raises:
        GenerationError: one is too long for the model, or there is none.
        ConfigError: the file cannot be read, or a row has no prompt.
    """
    found: dict[tuple[int, ...], Prompt] = {}
    repeated = 0
    with input_errors():
        for row in _rows(options):
            prompt = _encoded(row, options.chat, opened)
            repeated += tuple(prompt.token_ids) in found
            found.setdefault(tuple(prompt.token_ids), prompt)
            if len(found) == options.num_prompts:
                break
    if not found:
        raise GenerationError(f"--prompts {options.prompts}: has no row")
    if repeated:
        warn(f"{repeated} of the prompts repeat others; each is answered once")
    longest = max(map(len, found))
    if longest + options.sampling.max_new_tokens > opened.max_positions:
        raise GenerationError(
            f"--max-new-tokens {options.sampling.max_new_tokens}: with a prompt of {longest} tokens it is more than "
            f"the {opened.max_positions} positions of the model"
        )
    return list(found.values())


def _rows(options: GenerateOptions) -> Iterator[Row]:
    """Raises BadRow where a row cannot be read."""
    if options.prompts is None:
        for number, text in enumerate(options.texts, 1):
            yield Row(Location("--prompt", number), {"prompt": text})
        return
    for row in read_rows(options.prompts):
        if not isinstance(row, Row):
            raise row
        yield row


def _encoded(row: Row, chat: bool, opened: OpenExport) -> Prompt:
    tokenizer = opened.tokenizer
    content = read_content(row, "prompt")
    if not content:
        raise row.location.bad_row("there is no `prompt`", "Give each row a prompt, as text or a list of messages")
    if isinstance(content, str) and chat:
        content = [{"role": "user", "content": content}]
    check_other_columns(row, is_chat=not isinstance(content, str))
    if isinstance(content, str):
        return Prompt(content, tokenizer.encode(content, add_bos=True))
    system = read_system(row)
    if system is not None and content[0]["role"] != "system":
        content = [{"role": "system", "content": system}, *content]
    arguments: dict[str, Any] = read_template_arguments(row)
    return Prompt(content, tokenizer.encode(tokenizer.render_chat(content, arguments, add_generation_prompt=True)))
