"""A synchronous save holds little beside the training state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import run, torchrun_command

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).parent / "save_memory_worker.py"


def test_save_adds_less_than_the_state_of_the_largest_parameter(tmp_path: Path) -> None:
    # Freed tensors go back to the system at once, so that what is resident is what is in use.
    run(torchrun_command(2, WORKER, str(tmp_path)), environment={"MALLOC_MMAP_THRESHOLD_": "65536"})
    for rank in range(2):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        assert measured["owned"] > 5 * measured["largest"], "the bound would allow a copy of everything"
        assert measured["added"] < 1.05 * measured["largest"], measured
