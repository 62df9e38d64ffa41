"""The one place where bytes from outside become values."""

import argparse
import os
import pickle
import re
import struct
from typing import Any

import pytest

from megatron_lpc.command_line import UserError
from megatron_lpc.files import whole_file
from megatron_lpc.outside.files import inside, is_plain_name, read_bytes, read_text
from megatron_lpc.outside.json_text import parse_json, read_json
from megatron_lpc.outside.messages import Malformed, brief, cleaned, holds_secret, reason
from megatron_lpc.outside.plain_pickle import read_pickle
from megatron_lpc.outside.typed import check, misfit
from megatron_lpc.outside.yaml_text import read_yaml

ALIASES = "a: &l0 [x]\n" + "".join(f"b{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.fixture
def write(tmp_path):
    def _write(content):
        path = tmp_path / "file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 100_000, "1" * 5000])
def test_json_has_bounds(text, write):
    with pytest.raises(Malformed, match="file: cannot be read"):
        read_json(write(text), Any)


def test_json_within_its_bounds_is_read(write):
    assert parse_json("[" * 100 + "]" * 100) is not None
    assert read_json(write('{"a": [{}, {}], "b": "é"}')) == {"a": [{}, {}], "b": "é"}


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ({"a": 1}, {"a": str}, "a must be text, got 1"),
        ({}, {"a": str}, "`a` is missing"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": list[int]}}, r"a\.b\[1\] must be a whole number, got 'x'"),
        ({"a": True}, {"a": int}, "a must be a whole number, got True"),
        ({"a": 2**63}, {"a": int}, "a must be a whole number, got 9223"),
        ({"a": float("nan")}, {"a": float}, "a must be a number, got nan"),
        ({"a": 10**400}, {"a": float}, "a must be a number"),
        ({"a": "\ud800"}, {"a": str | None}, "a must be text"),
        ({"a": "x\0"}, {"a": str}, "a must be text"),
        ([1], dict, r"it must be an object, got \[1\]"),
    ],
)
def test_values_are_of_the_types_that_are_expected(value, kind, problem):
    with pytest.raises(Malformed, match=f"^file: {problem}"):
        check(value, kind, "file")


def test_right_values_pass():
    kinds = {"a": int, "b": float | None, "c": dict[str, list[str]]}
    assert misfit({"a": 1, "b": 2, "c": {"x": ["y"]}, "more": object()}, kinds) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ALIASES, "100,000 values"),
        ("a: &a [*a]", "refers to what it stands in"),
        ("a: " + "[" * 3000, "nested more than 50 times"),
        ("a: 2024-99-99", "is no value of timestamp"),
        ("a: !!int ''", "is no value of int"),
        ("a: " + "1" * 5000, "is no value of int"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [a]\n: 1", "is no key"),
        ("a: 1\na: 2", "duplicate key 'a'"),
    ],
)
def test_yaml_has_bounds(text, problem, write):
    with pytest.raises(Malformed, match=rf"file:\d+: not YAML: .*{re.escape(problem)}") as caught:
        read_yaml(write(text))
    assert "\n" not in str(caught.value)


def test_yaml_with_aliases_and_merged_mappings_is_read(write):
    assert read_yaml(write("a: &a {x: 1}\nb: *a\nc: {<<: *a, x: 2, y: 3}")) == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 2, "y": 3},
    }


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", None, 3, ".", "a\0", "\ud800", "..\\x"])
def test_an_index_names_no_file_elsewhere(name, tmp_path):
    with pytest.raises(Malformed, match=r"index\.json: names"):
        inside(tmp_path, name, "index.json")
    assert not is_plain_name(name)


def test_an_index_names_files_of_its_folder(tmp_path):
    assert inside(tmp_path, "a/b.safetensors", "index.json") == tmp_path / "a" / "b.safetensors"
    assert is_plain_name(".metadata")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Malformed, match="pipe: is no regular file"):
        read_bytes(tmp_path / "pipe")


def test_a_file_that_is_too_large_is_refused(write):
    with pytest.raises(Malformed, match="has 11 bytes, above the limit of 10"):
        read_text(write("x" * 11), 10)


class _Calls:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pickle.dumps(_Calls()), "it wants to call posix.mkdir"),
        (b"\x80\x02]r" + struct.pack("<I", 2**32 - 2) + b".", "a memo of 4,294,967,294 entries"),
        (b"p4000000000\n.", "a memo"),
        (b"\x80\x02cargparse\nNamespace\nN}X\x01\x00\x00\x00aK\x01s\x86b.", "it changes Namespace"),
        (b"", "cannot be read"),
    ],
)
def test_a_pickle_holds_plain_data(content, problem, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Malformed, match=problem):
        read_pickle(write(content), re.compile(r"argparse\.Namespace"))
    assert not (tmp_path / "ran").exists()
    assert not hasattr(argparse.Namespace, "a")


def test_a_plain_pickle_is_read(write):
    assert read_pickle(write(pickle.dumps({"a": [1, "b"]})), re.compile("")) == {"a": [1, "b"]}


def test_messages_are_short_and_show_no_control_characters():
    message = str(UserError("a\x1b[31m\u202e" + "x" * 100_000 + "end"))
    assert len(message) < 2000
    assert message.startswith(r"a\x1b[31m\u202e")
    assert "letters ..." in message
    assert message.endswith("end")
    assert reason(ValueError("a\n  b")) == "a b"
    assert len(brief([["x" * 1000] * 1000] * 1000)) < 2000


def test_messages_show_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    text = "key 0123456789abcdef my-own-token hf_ABCDEFGHIJKLMNOPQRSTUVWX https://me:pass@host/x"
    assert cleaned(text) == "key *** *** *** https://***@host/x"
    assert holds_secret("my-own-token")
    assert not holds_secret("https://host/x a:b@c hf_model")


def test_a_file_that_is_being_written_is_private(tmp_path):
    with whole_file(tmp_path / "a") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("keep")
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "victim").read_text() == "keep"
    assert (tmp_path / "a").read_text() == "x"
