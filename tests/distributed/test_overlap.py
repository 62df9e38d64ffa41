"""Overlapped communication changes no bit over several steps, with each parameter in a bucket of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import torchrun
from overlap_worker import CASES, OVERLAPS

pytestmark = pytest.mark.distributed
PROCESSES = 4


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict]]:
    folder: Path = tmp_path_factory.mktemp("overlap")
    torchrun(PROCESSES, Path(__file__).parent / "overlap_worker.py", str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("overlap", [name for name in OVERLAPS if name != "none"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_synchronous_run(ranks: list[dict[tuple[str, str], dict]], case: str, overlap: str) -> None:
    for results in ranks:
        synchronous, overlapped = results[case, "none"], results[case, overlap]
        assert len(set(synchronous["losses"].tolist())) > 1, "the steps differ"
        assert torch.equal(overlapped["losses"], synchronous["losses"])
        assert overlapped["weights"].keys() == synchronous["weights"].keys()
        for name, weight in synchronous["weights"].items():
            assert torch.equal(overlapped["weights"][name], weight), name
