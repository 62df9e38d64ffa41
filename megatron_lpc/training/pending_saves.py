"""Asynchronous saves that are being written, each by a process of each rank."""

from __future__ import annotations

import signal
import socket
import time

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest

from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.checkpoint_failure import WriterDied
from megatron_lpc.training.collectives import largest_on_any_rank

_DONE, _WRITES, _DIED = range(3)
"""How the process of a rank is."""
_LONGEST_PAUSE = 1.0
"""Seconds between two looks while the run waits."""


class PendingSaves:
    """megatron-core's queue of saves, which all ranks finish or fail together."""

    def __init__(self, groups: ProcessGroups) -> None:
        self._groups = groups
        self._queue = AsyncCallsQueue()

    def begin(self, request: AsyncRequest) -> None:
        """Start a process that writes this rank's part."""
        self._queue.schedule_async_request(request)

    def finalize(self, blocking: bool) -> None:
        """Complete the saves whose parts are all written; with `blocking` wait until there is no other.

        Collectives: one all-reduce over the world, between hosts, for each look at a pending save; those of
        megatron-core when it is complete.

        Raises:
            WriterDied: on all ranks, as soon as a process of one has died, whether or not the others still write.
        """
        pause = 0.01
        while self._queue.get_num_unfinalized_calls():
            own, cause = self._own_writer()
            state = largest_on_any_rank(own, self._groups)
            if state == _DIED:
                raise WriterDied(cause)
            if state == _DONE:
                self._queue.maybe_finalize_async_calls(blocking=True)
            elif not blocking:
                return
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _own_writer(self) -> tuple[int, str | None]:
        """How this rank's process of the oldest save is, and what ended one that died."""
        process = self._queue.async_calls[0].async_caller.process
        if process is None or process.exitcode == 0:
            return _DONE, None
        if process.exitcode is None:
            return _WRITES, None
        code = process.exitcode
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        name = f"process {process.pid} on {socket.gethostname()}, which writes it for rank {dist.get_rank()},"
        return _DIED, f"{name} {end}"
