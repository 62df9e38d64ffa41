"""A row becomes a preference pair: prompt, chosen and rejected, as text or as chat messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from megatron_lpc.data.source import Location, Row

Message = dict[str, Any]
Content = str | list[Message]

ASSISTANT_TURN = "\n\nAssistant:"
"""Opens a response in an HH-RLHF transcript."""


@dataclass(frozen=True)
class Pair:
    """All three texts are strings, or all three are lists of chat messages; the responses do not repeat the prompt."""

    location: Location
    prompt: Content
    chosen: Content
    rejected: Content
    group: str | None = None


def to_pair(row: Row, group_column: str | None = None) -> Pair:
    """The pair in the columns `chosen`, `rejected` and, unless the responses contain it, `prompt` of a row.

    Without a prompt column the prompt is what both responses begin with: common chat messages, or an HH transcript up
    to its last common "\\n\\nAssistant:". A text prompt beside chat responses is the user's turn; whole chats may
    repeat their prompt.

    Raises:
        BadRow: the row is not such a pair, its prompt or a response is empty, or chosen and rejected are equal.
    """
    chosen = _content(row, "chosen")
    rejected = _content(row, "rejected")
    prompt = _content(row, "prompt") if "prompt" in row.values else None
    if chosen == rejected:
        raise row.location.bad_row("chosen and rejected are equal", "Remove the row: it states no preference")
    if isinstance(chosen, str) and isinstance(rejected, str):
        pair = Pair(row.location, *_split_texts(row.location, prompt, chosen, rejected), _group(row, group_column))
    elif isinstance(chosen, list) and isinstance(rejected, list):
        pair = Pair(row.location, *_split_chats(row.location, prompt, chosen, rejected), _group(row, group_column))
    else:
        raise row.location.bad_row(
            "one of `chosen` and `rejected` is text, the other a list of messages", "Give both in the same form"
        )
    _check_filled(pair)
    return pair


def _content(row: Row, column: str) -> Content:
    """The text or the messages of a column."""
    if column not in row.values:
        found = ", ".join(row.values) or "none"
        raise row.location.bad_row(f"column `{column}` is missing (columns: {found})", "Rename the column, or add it")
    value = row.values[column]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise row.location.bad_row(
            f"`{column}` is {_kind(value)}, not text or a list of messages", "Give text, or a list of {role, content}"
        )
    if not all(_is_message(message) for message in value):
        raise row.location.bad_row(
            f"`{column}` holds a message without text `role` and `content`", "Give each message as {role, content}"
        )
    # Arrow gives every message the keys of all, with null where it has none; a template would take them for set.
    return [{key: entry for key, entry in message.items() if entry is not None} for message in value]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _group(row: Row, column: str | None) -> str | None:
    if column is None:
        return None
    value = row.values.get(column)
    if isinstance(value, str | int):
        return str(value)
    reason = f"`{column}` is {_kind(value)}" if column in row.values else f"column `{column}` is missing"
    raise row.location.bad_row(
        reason, "Give every row its group as text or a whole number, or leave --group-column unset"
    )


def _split_texts(location: Location, prompt: Content | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and responses of texts: as given, or split from transcripts where there is no prompt."""
    if prompt is None:
        return _split_transcripts(location, chosen, rejected)
    if isinstance(prompt, str):
        return prompt, chosen, rejected
    raise location.bad_row(
        "`prompt` is a list of messages but the responses are text", "Give all as text or all as messages"
    )


def _split_transcripts(location: Location, chosen: str, rejected: str) -> tuple[str, str, str]:
    common = len(_common_start(chosen, rejected))
    last_turn = chosen.rfind(ASSISTANT_TURN, 0, common)
    if last_turn < 0:
        raise location.bad_row(
            f"no `prompt` column, and chosen and rejected do not share a beginning with {ASSISTANT_TURN!r} in it",
            "Add a `prompt` column, or give both as whole transcripts of one conversation",
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
        texts = [content] if isinstance(content, str) else [message["content"] for message in content]
        if not any(text.strip() for text in texts):
            raise pair.location.bad_row(f"the {name} is empty", "Fill it in or remove the row (or set --bad-rows skip)")
