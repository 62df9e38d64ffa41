"""How the forked writers of a checkpoint tell their rank what they wrote."""

from __future__ import annotations

import functools
import pickle
import queue
import tempfile
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async


class _ResultsFile:
    """A queue of one element between a process and its forks: an unnamed temporary file that all of them have open."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives.

    def put(self, results: Any) -> None:
        self._file.seek(0)
        pickle.dump(results, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        self._file.seek(0)
        try:
            results = pickle.load(self._file)  # Written by this very program a moment ago.
        except EOFError:
            raise queue.Empty from None
        self._file.seek(0)
        self._file.truncate()
        return results


@functools.cache
def use_results_file() -> None:
    """Let megatron-core's writers answer through a file instead of a manager process of `multiprocessing`.

    At the first save of every rank such a process imports the main program again, torch and all. It outlives a killed run. And it dies of a
    SIGTERM that reaches the whole process group, as schedulers send it: then the very checkpoint that the signal asks for fails.
    """
    results = _ResultsFile()
    filesystem_async._get_write_results_queue = lambda: results
