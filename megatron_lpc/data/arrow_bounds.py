"""How much a compressed Arrow file unpacks to, known before anything of it is unpacked.

Every buffer of a compressed record batch begins with its size, 64 bits, for which Arrow takes memory unasked. What is
where in a message is said in Arrow's `format/Message.fbs`, a schema of FlatBuffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

MAX_BATCH_BYTES = 2**28
"""That a record batch may unpack to; `datasets` and pyarrow write smaller ones."""
_MAGIC_BYTES = 8
"""With padding, before the messages of a file."""
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER = 1, 2
"""Numbers of fields of `Message`."""
_DATA = 1
"""Of `DictionaryBatch`."""
_BUFFERS, _COMPRESSION = 2, 3
"""Of `RecordBatch`."""


def check_unpacked_size(source: pa.NativeFile, is_file: bool) -> None:
    """Raise a ValueError where a batch of a file or stream of Arrow would unpack to more than fits.

    Args:
        source: memory-mapped; it is left at its beginning.
    """
    source.seek(_MAGIC_BYTES if is_file else 0)
    for number, message in enumerate(_messages(source)):
        try:
            unpacked = _unpacked_bytes(message)
        except (struct.error, ValueError, IndexError) as error:
            raise ValueError(f"message {number} is damaged") from error
        if unpacked > MAX_BATCH_BYTES:
            raise ValueError(f"message {number} unpacks to {unpacked:,} bytes; write smaller batches")
    source.seek(0)


def _messages(source: pa.NativeFile) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(source)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _unpacked_bytes(message: Any) -> int:
    """Of all buffers of a message; 0 where nothing is compressed."""
    metadata, body = bytes(message.metadata), message.body
    root = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    kind = root.number(_HEADER_TYPE, "<B")
    batch = root.table(_HEADER)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(_DATA)
    elif kind != _RECORD_BATCH:
        return 0
    if batch is None or batch.table(_COMPRESSION) is None or body is None:
        return 0
    sizes = []
    for start, length in batch.pairs(_BUFFERS):
        if length >= struct.calcsize("<q"):
            sizes.append(struct.unpack("<q", bytes(body[start : start + 8]))[0])
    return sum(size for size in sizes if size > 0)  # -1: this buffer is not compressed.


class _Table:
    """A table of FlatBuffers."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        (back,) = struct.unpack_from("<i", content, at)
        self._fields = at - back
        (self._num_bytes,) = struct.unpack_from("<H", content, self._fields)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._num_bytes:
            return None
        (offset,) = struct.unpack_from("<H", self._content, self._fields + entry)
        return self._at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        place = self._place(field)
        return 0 if place is None else int(struct.unpack_from(kind, self._content, place)[0])

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return None if place is None else _Table(self._content, place + self.number(field, "<I"))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structures of two 64-bit integers."""
        place = self._place(field)
        if place is None:
            return []
        start = place + self.number(field, "<I")
        (count,) = struct.unpack_from("<I", self._content, start)
        if start + 4 + 16 * count > len(self._content):
            raise ValueError("a vector is longer than its message")
        return [struct.unpack_from("<qq", self._content, start + 4 + 16 * index) for index in range(count)]
