"""Files with something in them that should not be: values of other types, nested, huge, damaged or hostile."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 5000 + "]" * 5000
CANARY = "code-has-run"
"""Name of a file that hostile code would leave in its current folder."""
ODD_JSON = (
    *("null", "true", "0", "-1", "1", "3", "0.5", "1e400", "NaN", "-Infinity", "1e308", "1" * 5000, str(2**63)),
    *(str(2**31), "1000000000", '""', '"text"', '"none"', '"../../outside/secret"', '"../outside/secret.safetensors"'),
    *('"/etc/passwd"', r'"\ud800"', r'"\u0000"', r'"\u001b[31mred\u202e"', f'"{"x" * 100_000}"', r'"two\nlines"'),
    *(
        "[]",
        "{}",
        "[[]]",
        "[null]",
        '["a", 1]',
        '{"a": 1}',
        '{"": null}',
        r'{"\ud800": 1}',
        DEEP,
        "[" + "1," * 300 + "1]",
    ),
    '{"a":' * 3000 + "1" + "}" * 3000,
    '"hf_abcdefghijklmnopqrstuvwxyz0123"',
    '"https://user:password@host/x"',
)
_ALIASES = "".join(f"  - &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
ODD_YAML = (
    *(text for text in ODD_JSON if "\\u" not in text),
    *("!!python/object/apply:os.system ['touch code-has-run']", "!!python/name:os.system", "!!binary aGVsbG8="),
    *("2024-01-01", "2024-99-99", "!!int ''", "!!set {a, b}", "!!omap [a: 1]", "&a [*a]", "*nothing", "1_000", "0x10"),
    *("1:30", "yes", "~", "~x", "{<<: 3}", "[a: b]", '"\\ud800"', '"\\0"', "|\n  text", "\n  - &l0 [a]\n" + _ALIASES),
    "[" * 2000,
)


class Raw:
    """A part of a JSON document, as text."""

    def __init__(self, text: str) -> None:
        self.text = text


def dumps(value: Any) -> str:
    """JSON with `Raw` parts."""
    raws: list[str] = []

    def keep(raw: Raw) -> str:
        raws.append(raw.text)
        return f"@@{len(raws) - 1}@@"

    text = json.dumps(value, default=keep)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@@{number}@@"', raw, 1)
    return text


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """A value with one or two of its parts replaced, removed, renamed or wrapped, at any depth."""
    for _ in range(draw(st.integers(1, 2))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(list(value)))
        how = draw(st.sampled_from(("inside", "inside", "inside", "remove", "rename", "add")))
        if how == "remove":
            return {name: item for name, item in value.items() if name != key}
        if how == "rename":
            other = draw(st.sampled_from(("../../outside/secret", "x" * 3000, "\x1b[2J", "", "num_layers")))
            return {(other if name == key else name): item for name, item in value.items()}
        if how == "add":
            return value | {"added": Raw(draw(st.sampled_from(ODD_JSON)))}
        return value | {key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    if draw(st.integers(0, 9)) == 0:
        return [value]
    return Raw(draw(st.sampled_from(ODD_JSON)))


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut off, overwritten, doubled, or in another encoding."""
    how = draw(st.sampled_from(("cut", "flip", "flip", "flip", "insert", "empty", "double", "utf16", "bom", "random")))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
    if how == "flip":
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, max(len(content) - 1, 0)), min_size=1, max_size=8)):
            if changed:
                changed[place] = draw(st.integers(0, 255))
        return bytes(changed)
    if how == "utf16":
        return content.decode("latin-1").encode("utf-16")
    return {"empty": b"", "double": content * 2, "bom": b"\xef\xbb\xbf" + content, "random": draw(st.binary())}[how]


def json_or_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file, mostly changed as JSON."""
    value = json.loads(content)
    as_json = changed_json(value).map(lambda changed: dumps(changed).encode())
    whole = st.sampled_from(ODD_JSON).map(str.encode)
    return st.one_of(as_json, as_json, as_json, as_json, changed_bytes(content), whole)


class _Calls:
    """Would run a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {CANARY}",)


PICKLES = (
    pickle.dumps(_Calls()),
    pickle.dumps({"a": _Calls()}),
    pickle.dumps([1, 2]),
    b"cposix\nsystem\n(S'touch code-has-run'\ntR.",
    b"\x80\x02]r" + struct.pack("<I", 2**32 - 2) + b".",
    b"p4000000000\n.",
    b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b"x.",
    b"\x80\x02ctorch\nSize\n" + b"(" * 3000 + b"t" * 3000 + b"R.",
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",
)
BOMBS = (
    gzip.compress(b"\0" * 30_000_000),
    gzip.compress(b'{"prompt": "' + b"a" * 30_000_000),
    gzip.compress(b"[" * 10_000),
)
