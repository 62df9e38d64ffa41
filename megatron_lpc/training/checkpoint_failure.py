"""A save that fails: its path, its cause and what is left, in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import is_main_replica
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from megatron_lpc.command_line import WriteFailed
from megatron_lpc.model.initialize import sharded_tensors
from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.checkpoint_folder import complete_checkpoints

_FULL = 1 << 20
"""Bytes left on a disk that is full."""
_MARGIN = 1 << 22
"""Bytes that a checkpoint takes besides its tensors: names, descriptions, states of generators."""
_CAUSES = (r"\[Errno \d+\] ([^:\n]+)", r"error: ([^:\n]+) \(os error \d+\)")
"""What the operating system said, as others quote it."""
_WRITERS = ("inline_container", "PytorchStreamWriter", "iostream error")
"""torch's writer of files, which does not say why it failed."""


class WriterDied(RuntimeError):
    """The process of an asynchronous save has ended before its work was done.

    Args:
        cause: what is known of it; None on the ranks whose own process is well.
    """

    def __init__(self, cause: str | None) -> None:
        super().__init__(cause or "another rank has the cause")
        self.is_known_elsewhere = cause is None


@contextmanager
def explains_failure(root: Path, iteration: int) -> Iterator[None]:
    """What goes wrong with the files of a save becomes a `WriteFailed`; anything else stays as it is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        cause = _cause(error, root)
        if cause is None:
            raise
        older = complete_checkpoints(root) if root.is_dir() else []
        remedy = "resume with --load auto" if isinstance(error, WriterDied) else "make room and resume with --load auto"
        rest = f"{older[-1].name} is whole; {remedy}" if older else "none is saved yet"
        failed = WriteFailed(f"{root}: the checkpoint of step {iteration} cannot be saved ({cause}); {rest}")
        failed.is_known_elsewhere = (
            error.is_known_elsewhere
            if isinstance(error, WriterDied)
            else isinstance(error, CheckpointException) and not error.failures
        )
        raise failed from error


def checkpoint_bytes(state: dict[str, Any], groups: ProcessGroups) -> int:
    """Bytes of the tensors that all ranks together write of their sharded state dicts.

    Collectives: one all-reduce over the world, between hosts.
    """
    own = [leaf.data.nbytes for leaf in sharded_tensors(state) if is_main_replica(leaf.replica_id)]
    total = torch.tensor([sum(own)])
    dist.all_reduce(total, group=groups.host)
    return int(total)


def check_free_space(root: Path, tensor_bytes: int) -> None:
    """Refuse to begin a save that the disk of `root` has no room for. For one rank only.

    Raises:
        OSError: there is no room, or no such folder.
    """
    needed, free = tensor_bytes + _MARGIN, shutil.disk_usage(root).free
    if free < needed:
        raise OSError(0, f"No space left on device: it needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")


def _cause(error: BaseException, root: Path) -> str | None:
    """None where no file is to blame."""
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
        if not failures:
            return "another rank has the cause"
        return next((cause for failure in failures if (cause := _cause(failure, root))), None)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if isinstance(error, WriterDied):
        return text
    for pattern in _CAUSES:
        if found := re.search(pattern, text):
            return found[1].strip()
    if "results_queue should not be empty" in text or "Incomplete worker results" in text:
        return "the process that writes it has been ended"
    if any(writer in text for writer in _WRITERS):
        is_full = root.is_dir() and shutil.disk_usage(root).free < _FULL
        return "No space left on device" if is_full else text.splitlines()[0]
    return None
