"""Columns of a row, checked: texts, chat messages and the group.

A null is a missing key everywhere: Arrow gives every struct the keys of all, and a template would take them for set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_lpc.data.source import Row

Message = dict[str, Any]
Content = str | list[Message]


def read_content(row: Row, column: str) -> Content | None:
    """The text or the messages of a column; None where the row has none.

    Raises:
        BadRow: it is neither, or its text cannot be tokenized.
    """
    value = row.values.get(column)
    if value is None:
        return None
    check_texts(row, column, value)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise row.location.bad_row(
            f"`{column}` is {kind(value)}, not text or a list of messages", "Give text, or a list of {role, content}"
        )
    return [_read_message(row, column, message) for message in value]


def read_group(row: Row, column: str | None) -> str | None:
    """The group of a pair, as text; None where `column` is.

    Raises:
        BadRow: the row has no such column, or it is neither text nor a whole number.
    """
    if column is None:
        return None
    value = row.values.get(column)
    check_texts(row, column, value)
    if isinstance(value, str | int):
        return str(value)
    reason = f"`{column}` is {kind(value)}" if column in row.values else f"column `{column}` is missing"
    raise row.location.bad_row(
        reason, "Give every row its group as text or a whole number, or leave --group-column unset"
    )


def _read_message(row: Row, column: str, value: object) -> Message:
    """A message with text `role` and `content`, or with tool calls in place of the content."""
    message = without_nulls(value)
    if isinstance(message, dict):
        if not message.get("tool_calls", True):
            del message["tool_calls"]
        message = _with_joined_parts(message)
        content = message.get("content")
        is_call = content is None and isinstance(message.get("tool_calls"), list)
        if isinstance(message.get("role"), str) and (isinstance(content, str) or is_call):
            return message
    raise row.location.bad_row(
        f"`{column}` holds a message without text `role` and `content`", "Give each message as {role, content}"
    )


def _with_joined_parts(message: Message) -> Message:
    """A content of text parts as one text: not every template joins them."""
    parts = message.get("content")
    is_text = isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    )
    return message | {"content": "".join(part["text"] for part in parts)} if parts and is_text else message


def without_nulls(value: object) -> Any:
    """A copy in which no key stands for null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value


def check_texts(row: Row, column: str, value: object) -> None:
    """Raise a BadRow where no tokenizer can read a text of a column."""
    for text in _texts(value):
        if "\0" in text:
            raise row.location.bad_row(
                f"`{column}` holds a NUL character, at character {text.index(chr(0)) + 1} of a text",
                "Take it out; text files that were cut off by a crash often hold some",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise row.location.bad_row(
                f"`{column}` holds half of a surrogate pair, {ascii(text[error.start])[1:-1]}, "
                f"at character {error.start + 1} of a text",
                "Write the whole character; a text that was cut by UTF-16 units often ends in a half",
            ) from error


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, those that are keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def kind(value: object) -> str:
    """What a value is, for messages."""
    return "null" if value is None else f"a {type(value).__name__}"
