"""Start a program on several processes, as `torchrun` does and with its flags.

    python -m megatron_lpc.launch --nproc-per-node 4 -m megatron_lpc.train --config run.yaml …

It is torch's own agent. What differs:

- A run that fails ends with its message, not with a stack trace of the agent, and with the exit code of the run.
- SIGTERM leaves the run 600 s for its checkpoint, not 30, unless `--shutdown-timeout` or
  `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` says otherwise; it ends with 143.
- With `--max-restarts` new workers find each other on torch 2.13, where the store that the agent shares with them keeps
  the addresses of the dead ones (pytorch/pytorch#135712).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

ENVIRONMENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Variables of torch, where they are unset."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; arguments and help are those of `torchrun`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Only now: torch reads them when it is imported.
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


if __name__ == "__main__":
    main()
