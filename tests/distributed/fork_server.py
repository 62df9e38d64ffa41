"""Starts launchers of which the imports are done: see `forked_launch`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path


def start_forked(arguments: Sequence[str], log: Path, temporary: Path) -> BaseProcess:
    """Start the launcher.

    Args:
        arguments: those of `python -m megatron_lpc.launch`, with `-m megatron_lpc.train` for the program.
        log: gets what launcher and workers print, behind what is there.
        temporary: folder of their temporary files.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["forked_launch"])
    process = server.Process(target=_launch, args=(arguments, log, temporary))
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), path]))
    try:
        process.start()
    finally:
        os.environ["PYTHONPATH"] = path
    return process


def _launch(arguments: Sequence[str], log: Path, temporary: Path) -> None:
    import forked_launch  # Here, for the server has it already.

    forked_launch.launch_here(arguments, log, temporary)
