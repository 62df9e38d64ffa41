"""Folders of checkpoints: the latest is found, appears whole, and older ones go only then."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lpc.config import ConfigError
from megatron_lpc.training.checkpoint_folder import (
    holds_checkpoint,
    latest_name,
    open_partial,
    publish,
    read_description,
    resolve_checkpoint,
    write_description,
)
from megatron_lpc.training.tensor_index import file_ends, read_tensor_index


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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1]", "must be an object"),
        ('{"options": 3}', "options: it must be an object"),
        ('{"options": {"model": {"num_layers": "4"}}}', "options: model.num_layers: expected an integer"),
        ('{"options": {"model": {"num_layers": 1000000000}}}', "options: model.num_layers: must be in"),
        ('{"options": {"model": {"num_layers": 4000, "num_experts": 4000}}}', "16,000,000 layers and experts"),
        ('{"options": {"data": {"tokenizer_model": ["a"]}}}', "options: data.tokenizer_model: expected a string"),
        ('{"code_names": ["a", 3]}', "code_names: it[1] must be text, got 3"),
        ('{"run": ' + "[" * 3000 + "]" * 3000 + "}", "cannot be read"),
    ],
)
def test_a_description_with_other_content_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "description.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_description(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'description.json'}: ")
    assert problem in str(caught.value)


def test_a_pointer_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"7" * 10**6)
    assert latest_name(tmp_path) is None or len(str(latest_name(tmp_path))) < 300


class _Command:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


def _index(size: tuple = (2,), place: str = "__0_0.distcp", length: object = 8) -> bytes:
    properties = TensorProperties(dtype=torch.float32)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(size))
    entry = TensorStorageMetadata(properties, torch.Size(size), [chunk])
    return pickle.dumps(Metadata({"a": entry}, None, {MetadataIndex("a"): _StorageInfo(place, 0, length)}))


def test_index_is_read(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(_index())
    assert file_ends(read_tensor_index(tmp_path)) == {"__0_0.distcp": 8}


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Command()),
        b"not a pickle",
        b"",
        pickle.dumps({}),
        _index(size=(2**62, 2**62)),
        _index(place="../elsewhere"),
        _index(place="/etc/passwd"),
        _index(length=-1),
        _index(length=None),
        pickle.dumps(Metadata({"a": None})),
        pickle.dumps(Metadata({3: TensorStorageMetadata(None, torch.Size([1]), [])})),
    ],
)
def test_index_that_is_not_plain_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ConfigError, match="not an index of tensors"):
        read_tensor_index(tmp_path)
    assert not (tmp_path / "owned").exists()
