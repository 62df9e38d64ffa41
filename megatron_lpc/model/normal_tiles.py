"""Normal numbers of whole matrices, of which any part can be drawn alone.

A matrix is cut into tiles of 512 x 512. Each tile has a stream of its own: Philox, keyed by the name of the matrix and
with the tile's place as counter. So a number depends on the name and on its place in the matrix only, and a rank draws
no more than the tiles that its shard touches.

numpy's generator draws about 80 million numbers per second and core, and releases Python's lock while it does. Two
others were measured: `lpc_kernels.philox` in PyTorch, whose 64-bit arithmetic gives 34 million, and `torch.randn`,
which gives 207 million but seeds each stream with 32 bits, too few for the hundred thousands of tiles of a large
model. numpy may change the numbers of a seed in a new version, as torch may.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import product

import numpy as np
import torch
from torch import Tensor

_TILE = 512


def drawing_threads() -> ThreadPoolExecutor:
    """Threads that share the cores of this machine fairly with its other ranks."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(max(1, cores // ranks_here))


def normal_shard(name: str, num_columns: int, rows: range, columns: range, threads: Executor) -> Tensor:
    """Standard normal numbers of some rows and columns of a matrix: [rows, columns] fp32, on the host.

    Rows that pad a matrix change none of the others.

    Args:
        name: of the matrix; another name gives other numbers.
        num_columns: columns of the whole matrix.
        rows, columns: which part to draw, with step 1.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    shard = np.empty((len(rows), len(columns)), dtype=np.float32)

    def fill(tile: tuple[range, range]) -> None:
        tile_rows, tile_columns = tile
        counter = (0, tile_rows.start // _TILE, tile_columns.start // _TILE, 0)
        stream = np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)))
        # The stream runs along the rows, so those after the last one needed are left out.
        end_row = min(tile_rows.stop, rows.stop)
        end_column = min(tile_columns.stop, num_columns)
        drawn = stream.standard_normal((end_row - tile_rows.start, end_column - tile_columns.start), dtype=np.float32)
        source_rows, target_rows = _overlap(tile_rows, rows)
        source_columns, target_columns = _overlap(tile_columns, columns)
        shard[target_rows, target_columns] = drawn[source_rows, source_columns]

    for _ in threads.map(fill, product(_tiles(rows), _tiles(columns))):
        pass
    return torch.from_numpy(shard)


def _tiles(wanted: range) -> Iterator[range]:
    """Tiles along one axis that hold something of `wanted`."""
    first = wanted.start // _TILE * _TILE
    for start in range(first, wanted.stop, _TILE):
        yield range(start, start + _TILE)


def _overlap(tile: range, wanted: range) -> tuple[slice, slice]:
    """What a tile and a shard share along one axis: where it lies in the tile, and where in the shard."""
    start, stop = max(tile.start, wanted.start), min(tile.stop, wanted.stop)
    return slice(start - tile.start, stop - tile.start), slice(start - wanted.start, stop - wanted.start)
