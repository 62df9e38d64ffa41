"""What programs show: tables and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from megatron_lpc.command_line import is_first_rank

Item = TypeVar("Item")


def wide_console() -> Console:
    """Standard output; wide where it is no terminal, so that tables in files are not cut."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def progress(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    unit: str = "",
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """The items, with a line on standard error of rank 0 that counts them.

    Args:
        total: how many there are; None where `items` has no length and nobody knows: then the line only counts.
        unit: what is counted, for the line.
        size: what an item counts for; 1 if not given.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_first_rank()) as display:
        if size is None:
            yield from display.track(items, total=total, description=description)
            return
        task = display.add_task(description, total=total)
        for item in items:
            yield item
            display.advance(task, size(item))


@contextmanager
def transfer_bar(description: str, nbytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error of rank 0 that shows bytes, bytes per second and the time left.

    Args:
        nbytes: bytes that will be moved in all.

    Yields:
        A function to call with the number of bytes just moved.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_first_rank()) as display:
        task = display.add_task(description, total=nbytes)
        yield lambda moved: display.advance(task, moved)


def counted(make: Callable[[], Item], nbytes: int, advance: Callable[[int], None]) -> Callable[[], Item]:
    """`make`, which also moves the bar of `transfer_bar` on by `nbytes` when it has made its item."""

    def make_and_count() -> Item:
        item = make()
        advance(nbytes)
        return item

    return make_and_count


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table in Markdown that ends with a line feed: the first `left` columns left-aligned, the others right."""
    rules = ["---" if column < left else "---:" for column in range(len(headings))]
    lines = [headings, rules, *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
