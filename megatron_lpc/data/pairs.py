"""A row becomes a preference pair: prompt, chosen and rejected, as text or as chat messages."""

from __future__ import annotations

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
    """The pair that a row with the columns `chosen`, `rejected` and, unless the responses contain it, `prompt` stands for.

    Without a prompt column the prompt is what both responses begin with: common chat messages, or an HH transcript up to its last
    common "\\n\\nAssistant:". A text prompt beside chat responses is the user's turn; whole chats may repeat their prompt.
    Raises BadRow when the row is not such a pair, has an empty side, or does not tell chosen from rejected.
    """
    chosen, rejected = _content(row, "chosen"), _content(row, "rejected")
    prompt = _content(row, "prompt") if "prompt" in row.values else None
    if chosen == rejected:
        raise row.location.bad_row("chosen and rejected are equal", "Remove the row: it states no preference")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(prompt, list):
            raise row.location.bad_row(
                "`prompt` is a list of messages but the responses are text", "Give all as text or all as messages"
            )
        texts = _split_transcript(row.location, chosen, rejected) if prompt is None else (prompt, chosen, rejected)
        pair = Pair(row.location, *texts, group=_group(row, group_column))
    elif isinstance(chosen, list) and isinstance(rejected, list):
        pair = Pair(
            row.location, *_split_chats(row.location, prompt, chosen, rejected), group=_group(row, group_column)
        )
    else:
        raise row.location.bad_row(
            "one of `chosen` and `rejected` is text, the other a list of messages", "Give both in the same form"
        )
    _check_filled(pair)
    return pair


def _content(row: Row, column: str) -> Content:
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
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise row.location.bad_row(
                f"`{column}` holds a message without text `role` and `content`", "Give each message as {role, content}"
            )
    # Arrow fills the keys that a message has not; a template would take them for given.
    return [{key: entry for key, entry in message.items() if entry is not None} for message in value]


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _group(row: Row, column: str | None) -> str | None:
    if column is None:
        return None
    value = row.values.get(column)
    if not isinstance(value, str | int):
        reason = f"`{column}` is {_kind(value)}" if column in row.values else f"column `{column}` is missing"
        raise row.location.bad_row(
            reason, "Give every row its group as text or a whole number, or leave --group-column unset"
        )
    return str(value)


def _split_transcript(location: Location, chosen: str, rejected: str) -> tuple[str, str, str]:
    common = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False)))
    end = chosen.rfind(ASSISTANT_TURN, 0, common)
    if end < 0:
        raise location.bad_row(
            f"no `prompt` column, and chosen and rejected do not share a beginning with {ASSISTANT_TURN!r} in it",
            "Add a `prompt` column, or give both as whole transcripts of one conversation",
        )
    end += len(ASSISTANT_TURN)
    return chosen[:end], chosen[end:], rejected[end:]


def _split_chats(
    location: Location, prompt: Content | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    shared = [pair[0] for pair in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))]
    repeated = bool(shared) and shared[0]["role"] != "assistant"
    if prompt is None or (isinstance(prompt, str) and repeated):
        messages = shared
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        repeated = messages == shared[: len(messages)]
    if prompt is None or repeated:
        chosen, rejected = chosen[len(messages) :], rejected[len(messages) :]
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if response and response[0]["role"] != "assistant":
            raise location.bad_row(
                f"the response in `{name}` begins with a turn of `{response[0]['role']}`",
                "Let chosen and rejected hold the assistant's turns, or both repeat the whole prompt first",
            )
    return messages, chosen, rejected


def _check_filled(pair: Pair) -> None:
    for name, content in (
        ("prompt", pair.prompt),
        ("chosen response", pair.chosen),
        ("rejected response", pair.rejected),
    ):
        texts = [content] if isinstance(content, str) else [message["content"] for message in content]
        if not any(text.strip() for text in texts):
            raise pair.location.bad_row(f"the {name} is empty", "Fill it in or remove the row (or set --bad-rows skip)")
