"""Start a program on several processes, as `torchrun` does and with its flags.

    python -m megatron_lpc.launch --nproc-per-node 4 -m megatron_lpc.train --config run.yaml …

It is torch's own agent. What differs:

- A run that fails ends with its message, not with a stack trace of the agent, and with the exit code of the run.
- SIGTERM leaves the run 600 s for its checkpoint, not 30, unless `--shutdown-timeout` or
  `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` says otherwise; it ends with 143.
- SIGUSR1 goes on to all processes, which save a checkpoint.
- With `--max-restarts` new workers find each other on torch 2.13, where the store that the agent shares with them keeps
  the addresses of the dead ones (pytorch/pytorch#135712).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ENVIRONMENT = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Variables of torch, where they are unset."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; arguments and help are those of `torchrun`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _pass_on_requests_to_save()
    # Only now: torch reads the variables when it is imported, and may start threads, in which no signal is blocked.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    arguments = run.parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        run.run(arguments)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(f"error: the process of rank {rank} was ended by {name}", file=sys.stderr)
        sys.exit(128 - failure.exitcode)


def _pass_on_requests_to_save() -> None:
    """Send each SIGUSR1 to all processes that this one has started.

    It is blocked here, and so in the processes that start from here, which it would end, until they are ready for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def pass_on() -> None:
        while True:
            signal.sigwait({signal.SIGUSR1})
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGUSR1)

    threading.Thread(target=pass_on, daemon=True).start()


if __name__ == "__main__":
    main()
