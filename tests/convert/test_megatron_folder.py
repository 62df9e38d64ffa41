"""Checkpoints whose tensors are stored in pieces, as tensor parallel ranks write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.convert.megatron_writer import Piece, write_checkpoint
from megatron_lpc.convert.tensor_files import TensorInfo


@pytest.fixture
def whole() -> torch.Tensor:
    return torch.arange(2 * 6 * 4, dtype=torch.float32).view(2, 6, 4)


@pytest.fixture
def folder(whole: torch.Tensor, tmp_path: Path) -> Path:
    """Two layers of [6, 4], each in two halves by rows, of which the first is split by columns too."""
    places = [((0, 3), (0, 2)), ((0, 3), (2, 4)), ((3, 6), (0, 4))]
    pieces = []
    for layer in range(2):
        for (top, bottom), (left, right) in places:
            part = whole[layer : layer + 1, top:bottom, left:right].clone()
            info = TensorInfo(tuple(part.shape), part.dtype)
            pieces.append(Piece("weight", tuple(whole.shape), (layer, top, left), info, lambda part=part: part))
    (tmp_path / "checkpoint").mkdir()
    write_checkpoint(tmp_path / "checkpoint", pieces, {})
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rows", [(0, 6), (0, 5), (2, 4), (3, 6), (4, 5)])
def test_reading_across_pieces(folder: Path, whole: torch.Tensor, layer: int, rows: tuple[int, int]) -> None:
    opened = MegatronFolder(folder)
    assert opened.tensors == {"weight": TensorInfo((2, 6, 4), torch.float32)}
    found = opened.read("weight", (layer, rows[0], 0), (1, rows[1] - rows[0], 4))
    assert torch.equal(found, whole[layer : layer + 1, rows[0] : rows[1]])


def test_a_hole(folder: Path) -> None:
    with pytest.raises(ConversionError, match="only a part of"):
        MegatronFolder(folder).read("weight", (0, 4, 0), (1, 4, 4))
