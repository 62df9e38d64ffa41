"""Writes the tensors of a checkpoint without a copy of all of them."""

from __future__ import annotations

import gc
import io
import logging
import os
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch.distributed import checkpoint
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_lpc.platform.patches.checkpoint_results_queue import ResultsFile
from megatron_lpc.training.checkpoint_integrity import checksums, new_checksum, without_crc32

# What its writers meet is told by the rank, in one line.
logging.getLogger(filesystem_async.__name__).setLevel(logging.CRITICAL)

_PIECE = 1 << 21
"""Bytes that are in the processor's cache when they are written, for their checksum has just been computed."""


class OneTensorAtATime(torch_dist.TorchDistSaveShardedStrategy):
    """megatron-core's strategy, but a synchronous save has one tensor on the host at a time.

    megatron-core 0.16 saves synchronously as it does asynchronously: it copies everything that the rank writes to the
    host before it writes (on a CPU: every view of a larger storage), and forks. torch's own writer copies a tensor when
    it is that tensor's turn. The format is the same. An asynchronous save is megatron-core's: it needs the copy.

    Args:
        computes_checksums: know the checksums of the files that this rank writes: of a synchronous save, while they are
            written; of an asynchronous one, in the process that has written them.
    """

    def __init__(self, computes_checksums: bool) -> None:
        super().__init__("torch_dist", 1)
        self._computes_checksums = computes_checksums
        self._checksums: dict[str, str] = {}
        self._of_fork = ResultsFile()

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Write what this rank is the main replica of.

        Collectives: torch gathers the plans of all ranks on rank 0 of the world, scatters the checked plan, and gathers
        what was written. They hold names and places of tensors, no data.

        Memory: on the host, a copy of the largest tensor at most; on the device nothing.
        """
        tensors, _, _ = torch_dist._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        # One thread, and no copying ahead of it: each thread has a tensor of its own in hand.
        writer = _PlainIndexWriter(str(checkpoint_dir), thread_count=1, per_thread_copy_ahead=0)
        if self._computes_checksums:
            writer.fs = _ChecksummedFiles(self._checksums)
        with without_crc32():
            checkpoint.save(
                torch_dist.mcore_to_pyt_state_dict(tensors, False),
                storage_writer=writer,
                planner=torch_dist.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            )

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> AsyncRequest:
        """megatron-core's asynchronous save; collectives are its own."""
        request = super().async_save(sharded_state_dict, checkpoint_dir)
        if request.async_fn is None:
            return request
        assert isinstance(request.async_fn, partial)
        transforms, _ = request.async_fn.args
        files = Path(checkpoint_dir).glob(f"__{dist.get_rank()}_*.distcp") if self._computes_checksums else ()
        return request._replace(async_fn=partial(_write_then_compute, transforms, self._of_fork, files))

    def take_checksums(self) -> dict[str, str]:
        """Name -> checksum of the files of tensors that this rank has written since the last call. No collective."""
        taken = dict(self._checksums)
        self._checksums.clear()
        try:
            return taken | self._of_fork.get_nowait()
        except queue.Empty:
            return taken


def _write_then_compute(
    transforms: Any, of_fork: ResultsFile, files: Iterable[Path], rank: int, buckets: list[Any], results: ResultsFile
) -> None:
    """Runs in a fork of the rank, in place of megatron-core's `write_preloaded_data_multiproc`.

    That forks again, once per file, and waits for ever for a fork that is killed. Here each file has a thread.

    Args:
        files: that need checksums; found once they are written.
    """
    gc.disable()  # As megatron-core does: it would free tensors of the rank's device.

    def write(number: int, bucket: Any) -> tuple[int, Any]:
        outcome: queue.Queue[Any] = queue.Queue()
        running: queue.Queue[Any] = queue.Queue()
        running.put(number)
        write_file = filesystem_async.FileSystemWriterAsync.write_preloaded_data
        write_file(transforms, number, bucket, outcome, running, use_fsync=True)
        number_and_result: tuple[int, Any] = outcome.get()
        return number_and_result

    with ThreadPoolExecutor(len(buckets)) as pool:
        outcomes = dict(pool.map(write, range(len(buckets)), buckets))
    failures = [result for result in outcomes.values() if isinstance(result, Exception)]
    results.put(failures[0] if failures else outcomes)
    try:
        of_fork.put(checksums(files))
    except OSError:
        of_fork.put({})  # Writing has failed too, which the rank is told by megatron-core.


class _PlainIndexWriter(checkpoint.FileSystemWriter):
    """Leaves the folder's path out of the index, where `read_tensor_index` allows no paths: the folder is renamed."""

    def storage_meta(self) -> None:
        return None


class _ChecksummedFiles(FileSystem):
    """Keeps the checksum of each file of tensors that is written, under its name."""

    def __init__(self, found: dict[str, str]) -> None:
        self._found = found

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if mode != "wb" or Path(path).suffix != ".distcp":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with _ChecksummedFile(Path(path)) as file:
            yield file
        self._found[Path(path).name] = file.checksum.hexdigest()


class _ChecksummedFile(io.BufferedWriter):
    """A file that computes its checksum while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.checksum = new_checksum()

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self.checksum.update(piece)
            super().write(piece)
        return len(view)
