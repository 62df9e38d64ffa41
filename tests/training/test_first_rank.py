"""What ranks wait for without a collective; each rank is a thread here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat

import pytest
import torch.distributed as dist

from megatron_lpc.command_line import UserError
from megatron_lpc.config import ConfigError
from megatron_lpc.training import first_rank
from megatron_lpc.training.first_rank import from_first_rank, on_every_rank

OnRanks = Callable[..., list[Future]]


@pytest.fixture
def on_ranks(monkeypatch: pytest.MonkeyPatch) -> OnRanks:
    """Calls a function on every rank, with the arguments of that rank; gives what it returns or raises."""
    here, store = threading.local(), dist.HashStore()
    monkeypatch.setattr(first_rank, "_get_default_store", lambda: store)
    monkeypatch.setattr(first_rank, "_call_numbers", repeat(0))
    monkeypatch.setattr(first_rank.dist, "get_rank", lambda: here.rank)

    def call(function: Callable, *of_ranks: object) -> list[Future]:
        monkeypatch.setattr(first_rank.dist, "get_world_size", lambda: len(of_ranks))

        def on_rank(rank: int) -> object:
            here.rank = rank
            return function(of_ranks[rank])

        with ThreadPoolExecutor(len(of_ranks)) as pool:
            return [pool.submit(on_rank, rank) for rank in range(len(of_ranks))]

    return call


def fails() -> str:
    raise UserError("this cannot work; do that")


def test_the_first_rank_works_for_all(on_ranks: OnRanks) -> None:
    found = on_ranks(from_first_rank, lambda: "of 0", lambda: "of 1", fails)
    assert [rank.result() for rank in found] == ["of 0"] * 3


def test_every_rank_waits_for_all(on_ranks: OnRanks) -> None:
    is_done = threading.Event()
    threading.Timer(0.2, is_done.set).start()
    found = on_ranks(lambda work: (on_every_rank(work), is_done.is_set()), lambda: 0, is_done.wait, lambda: 2)
    assert [rank.result() for rank in found] == [(0, True), (True, True), (2, True)]


@pytest.mark.parametrize("function", [from_first_rank, on_every_rank])
def test_all_ranks_know_why_one_failed(on_ranks: OnRanks, function: Callable) -> None:
    found = [rank.exception(10) for rank in on_ranks(function, fails, lambda: "of 1", lambda: "of 2")]
    assert [type(error) for error in found] == [UserError, ConfigError, ConfigError]
    assert {str(error) for error in found} == {"this cannot work; do that"}
    assert {error.exit_code for error in found} == {UserError.exit_code}
