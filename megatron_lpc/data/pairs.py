"""A row becomes a preference pair: prompt, chosen and rejected, as text or as chat messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.columns import Content, Message, read_content, read_group
from megatron_lpc.data.source import BadRow, Location, Row
from megatron_lpc.data.standard_row import ASSISTANT_TURN, standard_row
from megatron_lpc.data.template_columns import check_other_columns, read_system, read_template_arguments


@dataclass(frozen=True)
class Pair:
    """All three texts are strings, or all three are lists of chat messages; the responses do not repeat the prompt."""

    location: Location
    prompt: Content
    chosen: Content
    rejected: Content
    group: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template besides the messages, such as `tools`."""


def to_pair(row: Row | BadRow, config: DataConfig) -> Pair:
    """The pair in the columns `chosen`, `rejected` and, unless the responses contain it, `prompt` of a row, or in those
    that `data_format` and the options of columns name.

    Without a prompt column the prompt is what both responses begin with: common chat messages, or an HH transcript up
    to its last common "\\n\\nAssistant:". A text prompt beside chat responses is the user's turn; both responses may
    repeat their prompt. For chats, column `system` is the first turn, and `tools` and `chat_template_kwargs` are
    variables of the template.

    Raises:
        BadRow: `row` itself where a reader gave it as one; the row is not such a pair, its prompt or a response is
            empty, chosen and rejected are equal, a column that would change the prompt is not read, or values are
            nested too deeply for Python.
    """
    if isinstance(row, BadRow):
        raise row
    try:
        return _read_pair(row, config)
    except RecursionError as error:
        raise row.location.bad_row("values are nested in one another hundreds of times", "Remove the row") from error


def _read_pair(row: Row, config: DataConfig) -> Pair:
    group = read_group(row, config.group_column)
    row = replace(row, values={name: value for name, value in row.values.items() if name not in config.ignored_columns})
    row = standard_row(row, config)
    chosen, rejected, prompt = (read_content(row, column) for column in ("chosen", "rejected", "prompt"))
    if chosen == rejected:
        raise row.location.bad_row("chosen and rejected are equal", "Remove the row: it states no preference")
    if isinstance(chosen, str) and isinstance(rejected, str):
        check_other_columns(row, is_chat=False)
        pair = Pair(row.location, *_split_texts(row.location, prompt, chosen, rejected), group)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        check_other_columns(row, is_chat=True)
        chats = _split_chats(row.location, prompt, chosen, rejected)
        pair = Pair(row.location, *chats, group, read_template_arguments(row))
    else:
        raise row.location.bad_row(
            "one of `chosen` and `rejected` is text, the other a list of messages", "Give both in the same form"
        )
    _check_filled(pair)
    return _with_system(pair, read_system(row))


def _split_texts(location: Location, prompt: Content | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and responses of texts: as given, or split from transcripts where there is no prompt."""
    if prompt is None:
        return _split_transcripts(location, chosen, rejected)
    if isinstance(prompt, str):
        if _repeats(chosen, prompt) and _repeats(rejected, prompt):
            return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
        return prompt, chosen, rejected
    raise location.bad_row(
        "`prompt` is a list of messages but the responses are text", "Give all as text or all as messages"
    )


def _repeats(response: str, prompt: str) -> bool:
    """Whether a response begins with its prompt, and does not merely greet back ("Hello", "Hello there")."""
    begins = response.startswith(prompt) and bool(prompt)
    return begins and (not prompt[-1].isalnum() or response[len(prompt) :].startswith("\n"))


def _split_transcripts(location: Location, chosen: str, rejected: str) -> tuple[str, str, str]:
    common = len(_common_start(chosen, rejected))
    last_turn = chosen.rfind(ASSISTANT_TURN, 0, common)
    if last_turn < 0:
        raise location.bad_row(
            f"no `prompt` column, and chosen and rejected do not share a beginning with {ASSISTANT_TURN!r} in it",
            "Name the column of the prompt with --prompt-column, or give both as whole transcripts of one conversation",
        )
    end = last_turn + len(ASSISTANT_TURN)
    return chosen[:end], chosen[end:], rejected[end:]


def _split_chats(
    location: Location, prompt: Content | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt and responses of chats, which may repeat the prompt or be the only place where it stands."""
    common = _common_start(chosen, rejected)
    has_common_prompt = bool(common) and common[0]["role"] != "assistant"
    if prompt is None:
        messages, is_repeated = common, True
    elif isinstance(prompt, list):
        messages, is_repeated = prompt, prompt == common[: len(prompt)]
    elif has_common_prompt:
        messages, is_repeated = common, True
    else:
        messages, is_repeated = [{"role": "user", "content": prompt}], False
    if is_repeated:
        chosen = chosen[len(messages) :]
        rejected = rejected[len(messages) :]
    _check_responder(location, "chosen", chosen)
    _check_responder(location, "rejected", rejected)
    return messages, chosen, rejected


def _with_system(pair: Pair, system: str | None) -> Pair:
    """The pair with the turn of column `system`, which only chats have, before its prompt."""
    if system is None:
        return pair
    assert not isinstance(pair.prompt, str)
    first = pair.prompt[0]
    if first["role"] != "system":
        return replace(pair, prompt=[{"role": "system", "content": system}, *pair.prompt])
    if first.get("content") != system:
        raise pair.location.bad_row(
            "column `system` and the system's turn in the prompt differ", "Keep one of them in the row"
        )
    return pair


def _check_responder(location: Location, column: str, response: list[Message]) -> None:
    if response and response[0]["role"] != "assistant":
        raise location.bad_row(
            f"the response in `{column}` begins with a turn of `{response[0]['role']}`",
            "Let chosen and rejected hold the assistant's turns, or both repeat the whole prompt first",
        )


def _common_start(chosen: Iterable[Any], rejected: Iterable[Any]) -> list[Any]:
    """The letters or messages in which both agree before they first differ."""
    agreeing = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    return [first for first, _ in agreeing]


def _check_filled(pair: Pair) -> None:
    contents = {"prompt": pair.prompt, "chosen response": pair.chosen, "rejected response": pair.rejected}
    for name, content in contents.items():
        if not _is_filled(content):
            raise pair.location.bad_row(f"the {name} is empty", "Fill it in or remove the row (or set --bad-rows skip)")


def _is_filled(content: Content) -> bool:
    """Whether there is a text other than spaces, or a tool call."""
    if isinstance(content, str):
        return bool(content.strip())
    return any(message.get("content", "").strip() or message.get("tool_calls") for message in content)
