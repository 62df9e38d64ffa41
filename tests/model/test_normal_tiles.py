"""Any part of a matrix of normal numbers can be drawn alone, and costs no more than the tiles that it touches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from megatron_lpc.model.normal_tiles import drawing_threads, normal_shard

ROWS, COLUMNS = 1100, 1300
"""Neither is a multiple of a tile."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def whole(threads: ThreadPoolExecutor, name: str = "weight", rows: int = ROWS) -> torch.Tensor:
    return normal_shard(name, COLUMNS, range(rows), range(COLUMNS), threads)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (range(ROWS), range(1024, COLUMNS)),
        (range(275, 550), range(COLUMNS)),
        (range(511, 513), range(510, 1290)),
        (range(1024, ROWS), range(7, 8)),
    ],
)
def test_a_shard_is_a_part_of_the_whole(threads: ThreadPoolExecutor, rows: range, columns: range) -> None:
    shard = normal_shard("weight", COLUMNS, rows, columns, threads)
    assert shard.dtype == torch.float32
    assert torch.equal(shard, whole(threads)[rows.start : rows.stop, columns.start : columns.stop])


def test_padding_rows_change_no_other(threads: ThreadPoolExecutor) -> None:
    assert torch.equal(whole(threads, rows=ROWS + 300)[:ROWS], whole(threads))


def test_numbers_are_normal_and_independent(threads: ThreadPoolExecutor) -> None:
    drawn = whole(threads)
    assert drawn.mean().abs() < 5 / drawn.numel() ** 0.5
    assert drawn.var() == pytest.approx(1, abs=0.01)
    tiles = [drawn[:512, :512], drawn[512:1024, :512], drawn[:512, 512:1024], whole(threads, "other")[:512, :512]]
    correlations = torch.corrcoef(torch.stack([tile.flatten() for tile in tiles])) - torch.eye(len(tiles))
    assert correlations.abs().max() < 0.01


def test_only_the_touched_tiles_are_drawn(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    counters: list[list[int]] = []
    philox = np.random.Philox

    def counted(*, key: int, counter: np.ndarray) -> np.random.Philox:
        counters.append(counter.tolist())
        return philox(key=key, counter=counter)

    monkeypatch.setattr(np.random, "Philox", counted)
    normal_shard("weight", 100_000, range(600, 1000), range(99_000, 99_400), threads)
    assert sorted(counters) == [[0, 1, 193, 0], [0, 1, 194, 0]]


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(96))
    for ranks, expected in (("8", 12), ("200", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        with drawing_threads() as pool:
            assert pool._max_workers == expected
