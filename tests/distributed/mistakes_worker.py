"""Call the training program's command line many times in one process, and tell how each call ended.

    python mistakes_worker.py '[["--flag", "value"], …]'

Prints a JSON list of [exit code, what it wrote to standard error].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

import torch.distributed as dist

from megatron_lpc.train import main as program
from megatron_lpc.training.setup import stop_distributed


def main() -> None:
    ends = []
    for flags in json.loads(sys.argv[1]):
        error, code = io.StringIO(), 0
        with contextlib.redirect_stderr(error):
            try:
                program(flags)
            except SystemExit as end:
                code = end.code
        ends.append([code, error.getvalue()])
        if dist.is_initialized():
            stop_distributed()
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
