"""Convert tensors on several cores, within a bound on the memory that all of them take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

_MOST_THREADS = 4
"""More do not help: writing takes longer than all else, and the kernel lets one thread at a time write to a file."""
_ROOM_BYTES = 1 << 29
"""Memory of the tensors in hand beyond that of the largest one."""


@dataclass(frozen=True)
class Work:
    """Reading, converting and writing one tensor."""

    nbytes: int
    """Memory that it takes, at most."""
    run: Callable[[], None]


def run_in_threads(works: Sequence[Work]) -> None:
    """Run all works, several at a time, begun in the order in which they are given.

    torch and the system calls release Python's lock, so the threads do run at the same time.

    Memory: that of the largest work and 512 MiB.

    Raises:
        Whatever the first work that failed raised. Those that were not begun are dropped.
    """
    limit = max((work.nbytes for work in works), default=0) + _ROOM_BYTES
    running: dict[Future[None], int] = {}
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="convert")
    try:
        for work in works:
            while running and sum(running.values()) + work.nbytes > limit:
                _collect(running)
            running[pool.submit(work.run)] = work.nbytes
        while running:
            _collect(running)
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(running: dict[Future[None], int]) -> None:
    """Wait until at least one work has ended, and forget those that have."""
    for ended in wait(running, return_when=FIRST_COMPLETED).done:
        del running[ended]
        ended.result()
