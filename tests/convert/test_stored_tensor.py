"""Tensors out of a file in which they stand one after the other, at any offset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_lpc.convert.stored_tensor import read_stored

TENSORS = [
    torch.arange(7, dtype=torch.uint8),
    torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    torch.randn(1200, 1000, generator=torch.Generator().manual_seed(1)).bfloat16(),
    torch.arange(12, dtype=torch.float64).view(3, 4).t(),
    torch.arange(40, dtype=torch.float16).view(4, 10)[1:3, 2:5],
    torch.empty(0, 3),
]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, list[tuple[int, int]]]:
    """A file with all tensors, and offset and length of each."""
    places = []
    with (tmp_path / "stored").open("wb") as stream:
        for tensor in TENSORS:
            start = stream.tell()
            torch.save(tensor, stream)
            places.append((start, stream.tell() - start))
            stream.write(b"x")  # Nothing aligns what comes next.
    return tmp_path / "stored", places


def test_every_tensor(places: tuple[Path, list[tuple[int, int]]]) -> None:
    file, parts = places
    for tensor, (offset, length) in zip(TENSORS, parts, strict=True):
        found = read_stored(file, offset, length)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)


def test_a_truncated_file(places: tuple[Path, list[tuple[int, int]]]) -> None:
    file, parts = places
    file.write_bytes(file.read_bytes()[: parts[2][0] + 5000])
    with pytest.raises((RuntimeError, EOFError)):
        read_stored(file, *parts[2])
