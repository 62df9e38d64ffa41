"""Chat templates: read from a file, rendered on a pinned date.

Some templates write today's date. So that the same rows are the same tokens tomorrow, a tokenizer has one date, and a
data cache keeps the one on which its first row was encoded.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.outside.files import read_text
from megatron_lpc.outside.messages import Malformed, reason
from megatron_lpc.outside.time_limit import time_limit

_MAX_BYTES = 2**20
_RENDER_SECONDS = 30.0
"""That a template may take for a chat; usual ones take less than a millisecond."""


def read_template(path: str | None) -> str | None:
    """The Jinja text in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"--chat-template {path}: no such file. Give a Jinja file.")
    try:
        return read_text(path, _MAX_BYTES)
    except Malformed as error:
        raise ValueError(f"--chat-template {error}. Give a Jinja file.") from error


class ChatRenderer(ABC):
    """`Tokenizer.render_chat` of any tokenizer; its kind says how a template is rendered."""

    name: str
    template: Any
    template_date: datetime.date | None

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        if self.template is None:
            raise LookupError(
                f"the data holds chat messages but the tokenizer {self.name} has no chat template: "
                "give one with --chat-template"
            )
        try:
            with time_limit(_RENDER_SECONDS):
                return self._render(messages, dict(arguments or {}), add_generation_prompt)
        except Exception as error:  # a template raises jinja2's errors and, by itself, any other
            raise ValueError(f"the chat template refuses the messages ({reason(error)})") from error

    @abstractmethod
    def _render(self, messages: list[dict[str, Any]], variables: dict[str, Any], add_generation_prompt: bool) -> str:
        """Messages as the template writes them on its date; raises what the template raises."""


def writes_date(template: Any) -> bool:
    """Whether a template, or one of several by name, may ask for today's date."""
    return "strftime_now" in str(template)


def template_date(config: DataConfig) -> datetime.date:
    """The date that templates see: `chat_template_date`, or today.

    Raises:
        ValueError: it is no date.
    """
    if config.chat_template_date is None:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(config.chat_template_date)
    except ValueError as error:
        raise ValueError(f"--chat-template-date {config.chat_template_date}: give a date as 2026-01-31") from error


def check_date(config: DataConfig, template: Any) -> None:
    """Raise a ValueError where `chat_template_date` is idle, or missing while every start would take another date."""
    if not writes_date(template) and config.chat_template_date is not None:
        raise ValueError(
            f"--chat-template-date {config.chat_template_date}: has no effect, for the chat template does not ask for "
            "a date. Leave it out."
        )
    if writes_date(template) and config.chat_template_date is None and config.streaming:
        raise ValueError(
            "--streaming: the chat template writes today's date, and a stream has no cache that keeps it. "
            "Set --chat-template-date."
        )


def pin_date(template: str, date: datetime.date) -> None:
    """Let `strftime_now` of a template tell this date, at midnight, from now on and in this process."""
    # transformers gives templates no other clock than the machine's, and keeps compiled ones by their text.
    midnight = datetime.datetime.combine(date, datetime.time())
    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = midnight.strftime
