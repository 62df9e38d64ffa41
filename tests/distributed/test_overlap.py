"""Overlapped communication changes no bit over several steps, with each parameter in a bucket of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from launch import torchrun
from overlap_worker import CASES, EVALUATED, SAVED, SAVING, SKIPPED, overlaps_of
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

pytestmark = pytest.mark.distributed
PROCESSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("overlap")
    torchrun(PROCESSES, Path(__file__).parent / "overlap_worker.py", str(folder))
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], dict]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize(
    ("case", "overlap"), [(case, overlap) for case in CASES for overlap in overlaps_of(case) if overlap != "none"]
)
def test_equals_the_synchronous_run(ranks: list[dict[tuple[str, str], dict]], case: str, overlap: str) -> None:
    for results in ranks:
        synchronous, overlapped = results[case, "none"], results[case, overlap]
        assert len(set(synchronous["losses"].tolist())) > 1, "the steps differ"
        assert torch.equal(overlapped["losses"], synchronous["losses"])
        assert_same(
            dict(enumerate(overlapped["logps"])),
            dict(enumerate(synchronous["logps"])),
        )
        assert_same(overlapped["weights"], synchronous["weights"])
    assert ranks[-1][case, overlap]["logps"], "the last stage scored"


@pytest.mark.parametrize("case", SAVING)
def test_saves_the_checkpoints_of_the_synchronous_run(folder: Path, case: str) -> None:
    saved = {iteration: read(folder / case / "none", iteration) for iteration in SAVED}
    for iteration, synchronous in saved.items():
        assert_same(read(folder / case / "param_gather", iteration), synchronous)
    weight = "decoder.final_layernorm.weight"
    assert not torch.equal(saved[1][weight], saved[EVALUATED][weight]), "a step between them"
    assert torch.equal(saved[EVALUATED][weight], saved[SKIPPED][weight]), "a skipped step between them"


def read(folder: Path, iteration: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    reader = dcp.FileSystemReader(folder / f"iter_{iteration:07d}")
    stored = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
