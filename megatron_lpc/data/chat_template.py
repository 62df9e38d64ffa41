"""Chat templates: read from a file, rendered on a pinned date."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils


def read_template(path: str | None) -> str | None:
    """The Jinja text in a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"--chat-template {path}: no such file. Give a Jinja file.")
    return Path(path).read_text(encoding="utf-8")


def no_template(tokenizer: str) -> LookupError:
    """The error to raise for chats without a template."""
    return LookupError(
        f"the data holds chat messages but the tokenizer {tokenizer} has no chat template: "
        "give one with --chat-template"
    )


def writes_date(template: Any) -> bool:
    """Whether a template, or one of several by name, may ask for today's date."""
    return "strftime_now" in str(template)


def pin_date(template: str, date: datetime.date) -> None:
    """Let `strftime_now` of a template tell this date, at midnight, from now on and in this process."""
    # transformers gives templates no other clock than the machine's, and keeps compiled ones by their text.
    midnight = datetime.datetime.combine(date, datetime.time())
    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = midnight.strftime
