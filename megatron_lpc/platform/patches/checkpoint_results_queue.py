"""How the forked writers of a checkpoint tell their rank what they wrote."""

from __future__ import annotations

import pickle
import queue
import tempfile
from typing import Any

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace


@patch(*MEGATRON_CORE, symptom="At its first checkpoint each rank starts a manager process, which a SIGTERM ends.")
def answer_through_results_file() -> None:
    """Let the writers of megatron-core's checkpoints answer through a file in place of a `multiprocessing` manager.

    The manager's process imports the main program again, torch included, and outlives a run that is killed. Schedulers
    send SIGTERM to the whole process group: the manager ends, and the checkpoint that the signal asks for fails.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    results = ResultsFile()
    replace(filesystem_async, "_get_write_results_queue", lambda: results)


class ResultsFile:
    """A queue of one element between a process and its forks: an unnamed temporary file that all of them have open."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives.

    def put(self, results: Any) -> None:
        """Write the element; a fork does this."""
        self._file.seek(0)
        pickle.dump(results, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """Take the element out.

        Raises:
            queue.Empty: nothing was put.
        """
        self._file.seek(0)
        try:
            results = pickle.load(self._file)  # Written by a fork of this process a moment ago.
        except EOFError:
            raise queue.Empty from None
        self._file.seek(0)
        self._file.truncate()
        return results
