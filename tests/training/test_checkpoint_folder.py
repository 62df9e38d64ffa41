"""Folders of checkpoints: the latest is found, appears whole, and older ones go only then."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from megatron_lpc.config import ConfigError
from megatron_lpc.training.checkpoint_folder import (
    holds_checkpoint,
    open_partial,
    publish,
    read_description,
    read_tensor_index,
    resolve_checkpoint,
    write_description,
)


def save(root: Path, iteration: int, keep_last: int = 0, text: str = "") -> None:
    partial = open_partial(root, iteration)
    (partial / "metadata.json").write_text(text)
    publish(root, iteration, keep_last)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_latest_checkpoint_is_found(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000010"
    assert resolve_checkpoint(str(tmp_path / "iter_0000005")) == tmp_path / "iter_0000005"
    assert holds_checkpoint(tmp_path)
    assert holds_checkpoint(tmp_path / "iter_0000005")


def test_named_checkpoint_is_found(tmp_path: Path) -> None:
    """Converters of Megatron-LM point to `release`."""
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "metadata.json").touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert resolve_checkpoint(tmp_path) == tmp_path / "release"


def test_keep_last_deletes_only_older_ones(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 9):
        save(tmp_path, iteration)
    (tmp_path / "iter_notes").mkdir()
    save(tmp_path, 4, keep_last=2)
    assert names(tmp_path) == [
        "iter_0000003",
        "iter_0000004",
        "iter_0000009",
        "iter_notes",
        "latest_checkpointed_iteration.txt",
    ]
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000004"


def test_keep_last_zero_keeps_all(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        save(tmp_path, iteration, keep_last=0)
    assert len(names(tmp_path)) == 4


def test_older_ones_stay_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        save(tmp_path, 2, keep_last=1)
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000001"


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 3, text="old")
    save(tmp_path, 3, text="new")
    assert (tmp_path / "iter_0000003" / "metadata.json").read_text() == "new"
    assert names(tmp_path) == ["iter_0000003", "latest_checkpointed_iteration.txt"]


def test_leftovers_are_removed(tmp_path: Path) -> None:
    open_partial(tmp_path, 7)
    save(tmp_path, 8)
    assert names(tmp_path) == ["iter_0000008", "latest_checkpointed_iteration.txt"]


@pytest.mark.parametrize("pointer", ["4", "", "release"])
def test_pointer_to_nothing_is_refused(tmp_path: Path, pointer: str) -> None:
    save(tmp_path, 3)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(pointer)
    with pytest.raises(
        ConfigError, match=r"latest_checkpointed_iteration.txt: names '.*'.* complete ones: iter_0000003"
    ):
        resolve_checkpoint(tmp_path)


def test_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert not holds_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve_checkpoint(tmp_path / "typo")


def test_description_comes_back(tmp_path: Path) -> None:
    assert read_description(tmp_path) == {}
    write_description(tmp_path, {"run": {"iteration": 3}})
    assert read_description(tmp_path) == {"run": {"iteration": 3}}


class _Command:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("content", [pickle.dumps(_Command()), b"not a pickle", b""])
def test_index_that_is_not_plain_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ConfigError, match="not an index of tensors"):
        read_tensor_index(tmp_path)
    assert not (tmp_path / "owned").exists()
