"""One tensor out of a file in which `torch.save` wrote several, one after the other."""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor


def read_stored(file: Path, offset: int, length: int) -> Tensor:
    """The tensor in `length` bytes of a file, mapped from it where it is aligned, else in memory of its own.

    `torch.load` maps whole files only; of a part it makes two copies in fresh memory, which take as long as all else of
    a conversion. Here it is only asked where the elements lie.

    Raises:
        OSError, RuntimeError, EOFError: the file is missing, truncated or damaged.
    """
    with file.open("rb") as stream:
        described = torch.load(cast(IO[bytes], _Part(stream, offset, length)), map_location="meta", weights_only=True)
        storage = described.untyped_storage()
        # What torch documents for reading storages by other means (its note on serialization).
        start = offset + storage._checkpoint_offset
        flat = _content(stream, start, storage.nbytes(), described.dtype)
    return flat.as_strided(described.size(), described.stride(), described.storage_offset())


def _content(stream: io.BufferedReader, start: int, nbytes: int, dtype: torch.dtype) -> Tensor:
    """[nbytes / itemsize]."""
    if os.fstat(stream.fileno()).st_size < start + nbytes:
        raise EOFError("truncated")
    if not nbytes:
        return torch.empty(0, dtype=dtype)
    before = start % mmap.ALLOCATIONGRANULARITY
    # Private: torch wants memory that it may write to.
    pages = mmap.mmap(stream.fileno(), before + nbytes, access=mmap.ACCESS_COPY, offset=start - before)
    content = torch.frombuffer(pages, dtype=torch.uint8, offset=before)
    return (content if start % dtype.itemsize == 0 else content.clone()).view(dtype)


class _Part(io.RawIOBase):
    """A part of a file as if it were all of it."""

    def __init__(self, stream: io.BufferedReader, offset: int, length: int) -> None:
        self._stream, self._offset, self._length = stream, offset, length
        self._stream.seek(offset)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}
        self._stream.seek(self._offset + origins[whence] + position)
        return self.tell()

    def tell(self) -> int:
        return self._stream.tell() - self._offset

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        return self._stream.readinto(view[: max(0, self._length - self.tell())])
