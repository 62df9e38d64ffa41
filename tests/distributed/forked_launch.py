"""`python -m megatron_lpc.launch` without its imports, which take most of a short run.

A server imports the program once. The launcher is a fork of it, and the workers are forks of the launcher: processes
with ids, sessions, sockets and files of their own, as new interpreters would be. Only the server imports this module:
`fork_server` starts it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megatron_lpc import launch

# torch reads them when it is imported.
for _name, _value in launch.ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import torch.distributed.run  # noqa: F401, E402
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import (  # noqa: E402
    SubprocessHandler,
)

import megatron_lpc.train  # noqa: E402
from megatron_lpc.platform import select_platform  # noqa: E402

select_platform("cpu", 0)  # Imports megatron-core, as it is on this device.
import megatron_lpc.training.checkpoint  # noqa: E402


def launch_here(arguments: Sequence[str], log: Path, temporary: Path) -> None:
    """Be the launcher, in this fork of the server; arguments as for `start_forked`."""
    os.setsid()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    SubprocessHandler._popen = lambda _, args, environment: _ForkedWorker(args, environment)
    launch.main(list(arguments))


class _ForkedWorker:
    """What torch's launcher needs of a `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _work(command[command.index("megatron_lpc.train") + 1 :], environment)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


def _work(flags: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Be the process that the launcher would have started: train and end."""
    code: object = 1
    try:
        os.setsid()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        megatron_lpc.train.main(flags)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
