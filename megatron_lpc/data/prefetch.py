"""Work ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

DEPTH = 2
"""Items made ahead."""


def prefetch(items: Iterable[T], depth: int = DEPTH) -> Iterator[T]:
    """`items` in order, up to `depth` of them made ahead in one background thread; its exceptions are raised here."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead: deque[Future[T | object]] = deque(pool.submit(next, source, end) for _ in range(depth))
        while True:
            item = ahead.popleft().result()
            if item is end:
                return
            ahead.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]  # only `end` is no T
