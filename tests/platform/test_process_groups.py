"""The groups of a parallel layout as its ranks see them, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "process_groups_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of four ranks under TP 1, PP 2, DP 2 answers."""
    folder = tmp_path_factory.mktemp("groups")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(WORKER), str(folder)], check=True, env=environment, timeout=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_the_pipeline_is_the_slowest_axis(ranks: list[dict]) -> None:
    assert [rank["is_first_stage"] for rank in ranks] == [True, True, False, False]
    assert [rank["is_last_stage"] for rank in ranks] == [False, False, True, True]


def test_the_last_stage_is_named_by_its_global_rank(ranks: list[dict]) -> None:
    assert [rank["last_stage_rank"] for rank in ranks] == [2, 3, 2, 3]


def test_data_parallel_ranks_are_counted_within_a_stage(ranks: list[dict]) -> None:
    assert [rank["dp_rank"] for rank in ranks] == [0, 1, 0, 1]
    assert {rank["dp_size"] for rank in ranks} == {2}


def test_one_rank_writes_for_each_copy_of_the_model(ranks: list[dict]) -> None:
    assert [rank["is_model_parallel_leader"] for rank in ranks] == [True, True, False, False]


def test_the_groups_are_megatron_cores_own(ranks: list[dict]) -> None:
    assert all(rank["same_objects_as_core"] for rank in ranks)


def test_groups_can_be_destroyed(ranks: list[dict]) -> None:
    assert all(rank["destroyed"] for rank in ranks)


def test_no_other_file_reads_the_global_groups() -> None:
    package = Path(__file__).parents[2] / "megatron_lpc"
    readers = [path.name for path in package.rglob("*.py") if "parallel_state" in path.read_text(encoding="utf-8")]
    assert readers == ["process_groups.py"]
