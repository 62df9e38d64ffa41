"""What several tests read of one launch: starting processes takes longer than what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from launch import torchrun
from layout_cases import LAYOUTS


@pytest.fixture(scope="session")
def run_layout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, dict]]]:
    """Gives what each rank of a layout wrote (see `layout_worker`); each layout starts once a session."""
    folder = tmp_path_factory.mktemp("layouts")

    @cache
    def run(layout: str) -> list[dict[str, dict]]:
        processes = LAYOUTS[layout][0]
        torchrun(processes, Path(__file__).parent / "layout_worker.py", layout, str(folder), timeout=900)
        return [torch.load(folder / f"{layout}-{rank}.pt", weights_only=True) for rank in range(processes)]

    return run
