"""Rows of Arrow tables: Parquet files, Arrow files and streams, and batches of `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from megatron_lpc.data.arrow_bounds import check_unpacked_size
from megatron_lpc.data.row import MAX_ROW_BYTES, START, BadRow, Location, Position, Row, RowRead, Wanted, every_row
from megatron_lpc.outside.json_text import parse_json
from megatron_lpc.outside.messages import reason

Batch = Any
"""A `pa.RecordBatch` or a `pa.Table`."""

ROWS_PER_BATCH = 256
_UNPACKED_BYTES = 2**28
"""That are decoded at a time, and that any file may unpack to."""
_LEAST_ROWS = 32
"""Of at most 8 MiB each."""
_MAX_COMPRESSION = 100


def read_parquet(path: str, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
    """Rows of a Parquet file from `position` on; row groups before it are not read.

    Raises:
        ValueError, OSError, pa.ArrowException: the file cannot be read.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        _check_compression(file.metadata, Path(path).stat().st_size)
        first, before = 0, 0
        while first < file.num_row_groups and before + file.metadata.row_group(first).num_rows <= position[0]:
            before += file.metadata.row_group(first).num_rows
            first += 1
        batches = (
            batch
            for group in range(first, file.num_row_groups)
            for batch in file.iter_batches(_rows_per_batch(file.metadata.row_group(group)), row_groups=[group])
        )
        yield from rows_of(path, batches, before, position, wanted)


def _check_compression(metadata: Any, num_bytes: int) -> None:
    """Refuse a file that unpacks to far more than its size, before memory is taken for that."""
    for group in range(metadata.num_row_groups):
        unpacked = metadata.row_group(group).total_byte_size
        if unpacked > max(_UNPACKED_BYTES, _MAX_COMPRESSION * num_bytes):
            raise ValueError(f"row group {group + 1} unpacks to {unpacked:,} bytes, and the file has {num_bytes:,}")


def _rows_per_batch(group: Any) -> int:
    """Rows of a row group that are decoded at a time: so many that they fit in memory.

    A text that a dictionary holds once may stand in every row, and is no larger than the row group. What is said of its
    columns is not asked for: pyarrow ends the process where that is damaged.
    """
    return max(_LEAST_ROWS, min(ROWS_PER_BATCH, _UNPACKED_BYTES // max(group.total_byte_size, 1)))


def read_arrow(path: str, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
    """Rows of an Arrow file or stream, memory-mapped, from `position` on.

    Raises:
        ValueError, OSError, pa.ArrowException: the file cannot be read.
    """
    with pa.memory_map(path) as source:
        is_file = source.read(6) == b"ARROW1"
        check_unpacked_size(source, is_file)
        if is_file:
            file = pa.ipc.open_file(source)
            batches: Iterable[Batch] = map(file.get_batch, range(file.num_record_batches))
        else:
            batches = pa.ipc.open_stream(source)
        yield from rows_of(path, map(_validated, batches), 0, position, wanted)


def _validated(batch: Batch) -> Batch:
    """The batch, whose offsets lie in its buffers: Arrow reads a file without a look at them."""
    batch.validate(full=True)
    return batch


def rows_of(name: str, batches: Iterable[Batch], before: int, position: Position, wanted: Wanted) -> Iterator[RowRead]:
    """Rows of `batches` from `position` on; `before` rows precede the batches.

    Raises:
        ValueError: two columns have one name.
    """
    for batch in batches:
        _check_names(batch.schema.names)
        skipped = min(max(position[0] - before, 0), batch.num_rows)
        for start in range(skipped, batch.num_rows, ROWS_PER_BATCH):
            part = batch.slice(start, ROWS_PER_BATCH)
            are_wanted = [wanted() for _ in range(part.num_rows)]
            rows = _rows_of_part(name, part, before + start) if any(are_wanted) else repeat(None)
            for number, is_wanted, row in zip(count(before + start + 1), are_wanted, rows, strict=False):
                yield row if is_wanted else None, (number, 0)
        before += batch.num_rows


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"more than one column is called {', '.join(twice)}")


def _rows_of_part(name: str, part: Batch, before: int) -> Iterator[Row | BadRow]:
    kind = pa.struct(part.schema)
    rows = _whole_part(part, kind)
    for index in range(part.num_rows):
        location = Location(name, before + index + 1)
        yield _row(location, part.slice(index, 1), kind) if rows is None else Row(location, rows[index])


def _whole_part(part: Batch, kind: pa.StructType) -> list[dict[str, Any]] | None:
    """All rows, which takes a sixth of the time that they take one by one; None where one of them may be bad."""
    if part.nbytes > MAX_ROW_BYTES:
        return None
    try:
        rows = part.to_pylist()
        holds_json = "extension<arrow.json>" in str(kind)
        return [_decoded(values, kind) for values in rows] if holds_json else rows
    except (ValueError, OverflowError, RecursionError):
        return None


def _row(location: Location, row: Batch, kind: pa.StructType) -> Row | BadRow:
    if row.nbytes > MAX_ROW_BYTES:
        return location.too_large(row.nbytes)
    try:
        (values,) = row.to_pylist()
        return Row(location, _decoded(values, kind))
    except (ValueError, OverflowError, RecursionError) as error:
        return location.bad_row(f"a text is not valid ({reason(error)})", "Write the file again, with texts in UTF-8")


def _decoded(value: Any, kind: pa.DataType) -> Any:
    """A value in which JSON texts are parsed: `datasets.Json`, for what Arrow has no type for."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return parse_json(value)
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    return value
