"""What messages show of outside text: a bounded part of it, no control characters, and no secrets."""

from __future__ import annotations

import os
import re
import reprlib
from functools import partial

MAX_LETTERS = 1800
"""Longer messages lose their middle."""
_REASON_LETTERS = 300
_MIN_SECRET_LETTERS = 8
"""Shorter values of environment variables would hide what is no secret."""
_SECRET_NAME = re.compile(r"(.*_)?(TOKEN|API_?KEY|ACCESS_KEY|SECRET(_KEY)?|PASSWORD|CREDENTIALS?)", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@'\"]*:[^\s/@'\"]*@")
_HUB_TOKEN = re.compile(r"\b(hf_|api_org_)\w{20,}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Malformed(ValueError):
    """Outside bytes that are not what they should be; one line that names the file."""


def brief(value: object) -> str:
    """A value as Python writes it, cut: a value may hold itself a million times."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 100
    shown.maxlevel = 3
    return shown.repr(value)[:_REASON_LETTERS]


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return cleaned(said, _REASON_LETTERS)


def cleaned(text: str, max_letters: int = MAX_LETTERS) -> str:
    """A text as it may be shown: without secrets, control characters written out, and no longer than this."""
    text = without_secrets(text).encode(errors="backslashreplace").decode()
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\t", " "))
    if len(text) <= max_letters:
        return text
    half = (max_letters - 40) // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} letters ...] {text[-half:]}"


def without_secrets(text: str) -> str:
    """A text with stars in the place of tokens of the Hub, credentials in addresses, and secrets of the environment."""
    text = _HUB_TOKEN.sub("***", _CREDENTIALS.sub("***@", text))
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LETTERS and _SECRET_NAME.fullmatch(name) and not os.path.exists(value):
            text = text.replace(value, "***")
    return text


def holds_secret(text: str) -> bool:
    """Whether a text has in it what `without_secrets` hides."""
    return without_secrets(text) != text


one_line = partial(re.compile(r"\s*\n\s*").sub, "; ")
"""A text with its lines divided by semicolons."""
