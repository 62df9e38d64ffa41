"""Published forms of preference data, each a pure function from its columns to ours.

A function gets the columns of its form that the row has and that are not null, and gives `prompt`, `chosen` and
`rejected`; `system`, `tools` and all other columns stay as they are. A form makes one pair of each row: where a row
ranks several responses, the best is chosen, and which of the others is rejected is drawn by a hash of the prompt, the
same in every run, as the makers of UltraFeedback's binarized form drew it at random.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_lpc.data.turns import Message, read_history, read_messages, read_prompt, read_response

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """How one published form is read."""

    convert: Callable[[Values], dict[str, Any]]
    """Raises ValueError, KeyError, TypeError or AttributeError for a row that is no pair."""
    columns: tuple[str, ...]
    """Columns that each row has."""
    optional: tuple[str, ...] = ()
    """Further columns that are read."""
    roles: dict[str, str] = field(default_factory=dict)
    """`prompt`, `chosen`, `rejected` -> the column that has it, where that has another name."""
    signs: tuple[tuple[str, ...], ...] | None = None
    """Sets of columns by which rows of this form are known; `columns` when None."""


def as_it_is(values: Values) -> dict[str, Any]:
    """The form that needs no conversion."""
    return dict(values)


def _alpaca(values: Values) -> dict[str, Any]:
    turns = read_history(values.get("history"))
    question = "\n".join(filter(None, [values["instruction"], values.get("input")]))
    return {
        "prompt": [*turns, {"role": "user", "content": question}],
        "chosen": read_response(values["chosen"]),
        "rejected": read_response(values["rejected"]),
    }


def _sharegpt(values: Values) -> dict[str, Any]:
    return {
        "prompt": read_messages(values["conversations"]),
        "chosen": read_response(values["chosen"]),
        "rejected": read_response(values["rejected"]),
    }


def _swift(values: Values) -> dict[str, Any]:
    if "messages" in values:
        messages = read_messages(values["messages"])
    elif "query" in values and "response" in values:
        turns = read_history(values.get("history"))
        messages = [*turns, {"role": "user", "content": values["query"]}, *read_response(values["response"])]
    else:
        raise ValueError("neither `messages` nor `query` and `response` are there")
    if not messages or messages[-1].get("role") != "assistant":
        raise ValueError("the messages do not end with the assistant's turn, which is the chosen response")
    if "rejected_messages" in values:
        return {"chosen": messages, "rejected": read_messages(values["rejected_messages"])}
    if "rejected_response" not in values:
        raise ValueError("neither `rejected_response` nor `rejected_messages` is there")
    return {
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": read_response(values["rejected_response"]),
    }


def _helpsteer2(values: Values) -> dict[str, Any]:
    parts = re.split(r"\n?<extra_id_1>(User|Assistant)\n", values["prompt"])
    prompt = [{"role": "user", "content": parts[0]}]
    prompt += [{"role": role.lower(), "content": text} for role, text in zip(parts[1::2], parts[2::2], strict=True)]
    chosen, rejected = _by_sign(_number(values, "preference_strength"), values["response_1"], values["response_2"])
    return {"prompt": prompt, "chosen": read_response(chosen), "rejected": read_response(rejected)}


def _helpsteer3(values: Values) -> dict[str, Any]:
    chosen, rejected = _by_sign(_number(values, "overall_preference"), values["response1"], values["response2"])
    return {
        "prompt": read_prompt(values["context"]),
        "chosen": read_response(chosen),
        "rejected": read_response(rejected),
    }


def _by_sign(preference: float, first: str, second: str) -> tuple[str, str]:
    """HelpSteer's scale goes from -3, the first response is much better, to 3, the second is."""
    if preference == 0:
        raise ValueError(f"the preference is {preference}: no response is better")
    return (first, second) if preference < 0 else (second, first)


def _nectar(values: Values) -> dict[str, Any]:
    parts = re.split(r"\n\n(Human|Assistant):", values["prompt"])
    texts = [text.strip() for text in parts[2::2]]
    is_transcript = not parts[0].strip() and parts[1::2] == ["Human", "Assistant"] * (len(texts) // 2)
    if not (is_transcript and texts and not texts[-1]):
        raise ValueError(
            "`prompt` is no transcript of \\n\\nHuman: and \\n\\nAssistant: turns that ends with the latter"
        )
    roles = ("user", "assistant") * (len(texts) // 2)
    prompt = [{"role": role, "content": text} for role, text in zip(roles[:-1], texts[:-1], strict=True)]
    ranked = [(-_number(answer, "rank"), answer["answer"]) for answer in values["answers"]]
    return _best_and_drawn(prompt, ranked)


def _nemo(values: Values) -> dict[str, Any]:
    ranked = [(-_number(one, "rank"), one["completion"]) for one in values["completions"]]
    return _best_and_drawn(read_prompt(values["context"]), ranked)


def _nemo_binary(values: Values) -> dict[str, Any]:
    return {
        "prompt": read_prompt(values["prompt"]),
        "chosen": read_response(values["chosen"]),
        "rejected": read_response(values["rejected"]),
    }


def _ultrafeedback(values: Values) -> dict[str, Any]:
    scored = [(_number(one, "overall_score"), one["response"]) for one in values["completions"]]
    return _best_and_drawn(read_prompt(values["instruction"]), scored)


def _ultrafeedback_binarized(values: Values) -> dict[str, Any]:
    chosen, rejected = _number(values, "score_chosen"), _number(values, "score_rejected")
    if chosen <= rejected:
        raise ValueError(f"the score of the chosen response, {chosen}, is not above that of the rejected, {rejected}")
    return {name: values[name] for name in ("prompt", "chosen", "rejected")}


def _best_and_drawn(prompt: list[Message], scored: Sequence[tuple[float, Any]]) -> dict[str, Any]:
    """The response of the highest score, and one of those below it, drawn by a hash of the prompt."""
    best = max((score for score, _ in scored), default=0)
    chosen = [response for score, response in scored if score == best]
    lower = [response for score, response in scored if score < best]
    if not lower:
        raise ValueError(f"none of the {len(scored)} responses is below another")
    digest = hashlib.sha256(json.dumps(prompt).encode()).digest()
    rejected = lower[int.from_bytes(digest[:8], "little") % len(lower)]
    return {"prompt": prompt, "chosen": read_response(chosen[0]), "rejected": read_response(rejected)}


def _number(values: Values, column: str) -> float:
    value = values.get(column)
    if not isinstance(value, int | float) or value != value:
        raise ValueError(f"`{column}` is {value!r}, not a number")
    return value


_PAIR = ("prompt", "chosen", "rejected")

FORMS: dict[str, Form] = {
    "trl": Form(as_it_is, ("chosen", "rejected"), ("prompt",), signs=(_PAIR,)),
    "openrlhf": Form(as_it_is, ("chosen", "rejected"), ("prompt",), signs=()),
    "alpaca": Form(
        _alpaca, ("instruction", "chosen", "rejected"), ("input", "history"), roles={"prompt": "instruction"}
    ),
    "sharegpt": Form(_sharegpt, ("conversations", "chosen", "rejected"), roles={"prompt": "conversations"}),
    "swift": Form(
        _swift,
        (),
        ("messages", "rejected_messages", "rejected_response", "query", "response", "history"),
        roles={"prompt": "messages", "rejected": "rejected_response"},
        signs=(("messages", "rejected_response"), ("messages", "rejected_messages"), ("query", "rejected_response")),
    ),
    "helpsteer2": Form(_helpsteer2, ("prompt", "response_1", "response_2", "preference_strength")),
    "helpsteer3": Form(
        _helpsteer3, ("context", "response1", "response2", "overall_preference"), roles={"prompt": "context"}
    ),
    "nectar": Form(_nectar, ("prompt", "answers")),
    "nemo": Form(_nemo, ("context", "completions"), roles={"prompt": "context"}),
    "nemo_binary": Form(_nemo_binary, _PAIR, signs=()),
    "ultrafeedback": Form(_ultrafeedback, ("instruction", "completions"), roles={"prompt": "instruction"}),
    "ultrafeedback_binarized": Form(_ultrafeedback_binarized, (*_PAIR, "score_chosen", "score_rejected")),
}
"""`--data-format` -> how it is read."""
