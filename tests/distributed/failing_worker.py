"""Two ranks, of which one or all fail, within `reports_failures`.

… failing_worker.py WAY
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from megatron_lpc.command_line import UserError, WriteFailed
from megatron_lpc.training.failure import reports_failures


def fail(way: str) -> None:
    rank = dist.get_rank()
    if way == "mistake":
        raise UserError("this cannot work; do that")
    if way == "full disk" and rank == 1:
        raise OSError(28, "No space left on device", "/somewhere/file")
    if way == "known elsewhere":
        failed = WriteFailed("the cause" if rank == 1 else "another rank has the cause")
        failed.is_known_elsewhere = rank == 0
        time.sleep(rank)
        raise failed
    if way == "bug":
        raise ZeroDivisionError("in the program")
    if way == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    with reports_failures():
        dist.init_process_group("gloo")
        fail(sys.argv[1])
