"""Safetensors written by blocks of rows: what the library `safetensors` reads from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_lpc.convert import hf_writer
from megatron_lpc.convert.hf_writer import TensorGroup, write_safetensors
from megatron_lpc.convert.tensor_files import TensorInfo


def _never() -> list[Tensor]:
    raise AssertionError("a large tensor was made as a whole")


@pytest.mark.parametrize("max_shard_bytes", [10**9, 400])
def test_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_shard_bytes: int) -> None:
    monkeypatch.setattr(hf_writer, "_BLOCK_BYTES", 100)
    wanted = {
        "wide": torch.randn(3, 40),  # A row is larger than a block.
        "tall": torch.randn(23, 5),  # Blocks of 5 rows, the last of 3.
        "flat": torch.randn(61).bfloat16(),
        "small": torch.randn(4, 4).bfloat16(),
    }
    made: list[tuple[str, int]] = []

    def rows(name: str, start: int, stop: int) -> Tensor:
        made.append((name, stop - start))
        return wanted[name][start:stop]

    groups = [
        TensorGroup(
            {name: TensorInfo(tuple(tensor.shape), tensor.dtype)},
            _never if tensor.nbytes > 100 else partial(list, [tensor]),
            partial(rows, name),
        )
        for name, tensor in wanted.items()
    ]
    pair = {name: torch.randn(30, 2) for name in ("one", "other")}
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in pair.items()}
    groups.append(TensorGroup(infos, lambda: list(pair.values())))
    written: list[int] = []

    write_safetensors(tmp_path, groups, max_shard_bytes, written.append)

    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if max_shard_bytes > 400 else 4)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    wanted |= pair
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert sorted(made) == sorted([("wide", 1)] * 3 + [("tall", 5)] * 4 + [("tall", 3)] + [("flat", 50), ("flat", 11)])
    assert sum(written) == sum(tensor.nbytes for tensor in wanted.values())
