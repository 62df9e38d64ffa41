"""Turns of a chat, from the ways in which published data give them.

The functions raise ValueError, KeyError, TypeError or AttributeError for what is no turn.
"""

from __future__ import annotations

from typing import Any

from megatron_lpc.outside.json_text import parse_json

Message = dict[str, Any]

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
"""Names of roles in LLaMA-Factory's and ms-swift's messages -> ours; the others stay."""


def read_prompt(prompt: Any) -> list[Message]:
    """A prompt as turns: a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else read_messages(prompt)


def read_response(response: Any) -> list[Message]:
    """A response as turns of the assistant: a text, a message, or messages."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return read_messages([response] if isinstance(response, dict) else response)


def read_messages(messages: Any) -> list[Message]:
    """Messages as ours, from a list or its JSON text."""
    if isinstance(messages, str):
        messages = parse_json(messages)
    return [_message(message) for message in messages]


def _message(message: dict[str, Any]) -> Message:
    """A message with `role` and `content`, which ShareGPT calls `from` and `value`."""
    renamed = dict(message)
    for old, new in (("from", "role"), ("value", "content")):
        if old in renamed:
            renamed[new] = renamed.pop(old)
    role = _ROLES.get(renamed["role"], renamed["role"])
    if role != "function_call":
        return renamed | {"role": role}
    calls = parse_json(renamed["content"])
    functions = [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def read_history(history: Any) -> list[Message]:
    """Earlier turns, given as pairs of a question and its response."""
    turns = []
    for turn in history or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("`history` is no list of [question, response]")
        question, response = turn
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return turns
