"""Two ranks, of which one or all fail, within `reports_failures`.

… failing_worker.py WAY
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from megatron_lpc.command_line import UserError, WriteFailed
from megatron_lpc.training.failure import end_waiting, reports_failures
from megatron_lpc.training.heartbeat import BEAT, start_heartbeat
from megatron_lpc.training.phases import doing, now_doing, steps_done


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
    if way in ("stops", "dies"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # As a run that would save first.
        start_heartbeat(2 * BEAT, end_waiting)
        steps_done(3)
        now_doing("optimizer")
        dist.barrier()
        if rank == 1:
            time.sleep(2 * BEAT)  # It has told that.
            if way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            # The launcher would wait half a minute for a process that is stopped.
            subprocess.Popen(["sh", "-c", f"sleep 15; kill -KILL {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        with doing("evaluation"):
            dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    with reports_failures():
        dist.init_process_group("gloo")
        fail(sys.argv[1])
