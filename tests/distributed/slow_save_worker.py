"""The training program on a disk so slow that writing a checkpoint takes SAVE_SECONDS.

    torchrun … slow_save_worker.py SAVE_SECONDS MARK [--flag value …]

The file MARK appears when the writing begins.
"""

from __future__ import annotations

import sys
import time
from functools import wraps
from pathlib import Path

from megatron_lpc.train import main


def slow_down_writing(seconds: float, mark: Path) -> None:
    """Each process that writes tensors waits before its first one."""
    from torch.distributed.checkpoint import filesystem

    write, has_waited = filesystem._write_item, False

    @wraps(write)
    def write_late(*args: object, **options: object) -> object:
        nonlocal has_waited
        if not has_waited:
            mark.touch()
            time.sleep(seconds)
            has_waited = True
        return write(*args, **options)

    filesystem._write_item = write_late


if __name__ == "__main__":
    slow_down_writing(float(sys.argv[1]), Path(sys.argv[2]))
    main(sys.argv[3:])
