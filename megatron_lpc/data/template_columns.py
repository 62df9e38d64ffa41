"""Columns that change what a chat template writes: read and checked, or named where they are not read."""

from __future__ import annotations

from typing import Any

from megatron_lpc.data.columns import check_texts, kind, without_nulls
from megatron_lpc.data.source import Row
from megatron_lpc.outside.json_text import parse_json

_FOR_TEMPLATES = ("system", "tools", "chat_template_kwargs")
"""Columns that change how a chat is rendered."""

_NOT_SUPPORTED = {
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "Only text can be trained on"),
    **dict.fromkeys(("system_prompt", "system_message"), "Name it with --system-column"),
    "functions": "Name it with --tools-column",
    "documents": "Give it in `chat_template_kwargs`",
    "history": "Write the earlier turns into `prompt`, or name the form with --data-format",
}
"""Column that other programs put into the prompt, and what to do with it."""

_NOT_FOR_TEMPLATES = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
"""Arguments of transformers' `apply_chat_template` that are not passed on to the template."""


def read_system(row: Row) -> str | None:
    """The text of the system's turn that column `system` puts before a chat."""
    system = row.values.get("system")
    if not _is_set(system):
        return None
    check_texts(row, "system", system)
    if not isinstance(system, str):
        raise row.location.bad_row(f"`system` is {kind(system)}, not text", "Give the system's turn as text")
    return system


def read_template_arguments(row: Row) -> dict[str, Any]:
    """Variables of the chat template: `tools`, and what `chat_template_kwargs` sets.

    As in TRL, `tools` may be JSON text. No tools are the same as an empty list, for which some templates would write
    that there are tools.

    Raises:
        BadRow: `tools` is no list of objects, or `chat_template_kwargs` no object of variables.
    """
    arguments: dict[str, Any] = {}
    tools = _read_json(row, "tools")
    if tools:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise row.location.bad_row("`tools` is not a list of objects", "Give each tool as its JSON schema")
        arguments["tools"] = tools
    further = _read_json(row, "chat_template_kwargs")
    if further:
        if not isinstance(further, dict):
            raise row.location.bad_row("`chat_template_kwargs` is not an object", "Give {variable: value}")
        refused = sorted(_NOT_FOR_TEMPLATES.intersection(further))
        if refused:
            raise row.location.bad_row(
                f"`chat_template_kwargs` sets {', '.join(refused)}, which no row can set", "Leave it out"
            )
        arguments |= further
    return arguments


def check_other_columns(row: Row, *, is_chat: bool) -> None:
    """Raise a BadRow that names a column that would change the prompt in other programs, and is not read here."""
    names = [name for name in _NOT_SUPPORTED if _is_set(row.values.get(name))]
    if names:
        raise row.location.bad_row(
            f"column `{names[0]}`, which may belong to the prompt, is not read",
            f"{_NOT_SUPPORTED[names[0]]}, or leave it out on purpose with --ignored-columns {' '.join(names)}",
        )
    names = [name for name in _FOR_TEMPLATES if _is_set(row.values.get(name))]
    if names and not is_chat:
        raise row.location.bad_row(
            f"column `{names[0]}` is for a chat template, but prompt and responses are texts, which have none",
            "Write it into `prompt`, read the texts as a chat (--data-format nemo_binary), or leave it out on purpose "
            f"with --ignored-columns {' '.join(names)}",
        )


def _read_json(row: Row, column: str) -> Any:
    """The value of a column that may be JSON text, in which a null is meant as one."""
    value = row.values.get(column)
    check_texts(row, column, value)
    if not isinstance(value, str) or not value:
        return without_nulls(value)
    try:
        value = parse_json(value)
    except ValueError as error:
        raise row.location.bad_row(f"`{column}` is no valid JSON ({error})", "Write it as JSON") from error
    check_texts(row, column, value)
    return value


def _is_set(value: object) -> bool:
    return without_nulls(value) not in (None, "", [], {})
