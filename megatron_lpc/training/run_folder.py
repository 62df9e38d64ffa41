"""The folder of `--save` belongs to one run: to one at a time, and to no other one later."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_lpc.config import ConfigError
from megatron_lpc.files import write_text
from megatron_lpc.folder_lock import FolderLock
from megatron_lpc.training.checkpoint_folder import holds_checkpoint
from megatron_lpc.training.first_rank import from_first_rank
from megatron_lpc.training.metrics_file import METRICS_FILE
from megatron_lpc.training.process_stat import process_stat

_LAUNCH = ".launch"
"""File in the folder that names the launch whose run it holds."""


@contextmanager
def only_run_in(save: str | None) -> Iterator[None]:
    """Hold the folder of `--save` against other runs, which rank 0 does for all; nothing where it is unset.

    Collectives: none; the other ranks wait for rank 0.

    Raises:
        UserError: on all ranks alike; another run holds it, or it cannot be written.
    """
    if save is None:
        yield
        return
    held: list[FolderLock] = []

    def take() -> str:
        held.append(FolderLock(Path(save)))
        return ""

    from_first_rank(take)
    try:
        yield
    finally:
        for lock in held:
            lock.release()


def is_restarted_in(save: Path) -> bool:
    """Whether torchrun has restarted this run in `save`, by `--max-restarts`; for rank 0.

    Otherwise the folder is of this launch from now on.

    Raises:
        ConfigError: it holds an earlier run.
    """
    launch, mark = _launch(), save / _LAUNCH
    if launch is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        with suppress(OSError):
            if mark.read_text(encoding="utf-8") == launch:
                return True
    refuse_earlier_run(save)
    if launch is not None:
        write_text(mark, launch)
    return False


def _launch() -> str | None:
    """Names the agent that has started this process, while it may start it again: its attempts are one run."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return None
    agent = os.getppid()
    began = process_stat(agent)[19]
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {agent} {began}"


def refuse_earlier_run(save: Path) -> str:
    """A run that does not go on in `save` would overwrite what is there."""
    metrics = save / METRICS_FILE
    has_metrics = metrics.is_file() and metrics.stat().st_size > 0
    if holds_checkpoint(save) or has_metrics:
        what = "checkpoints" if holds_checkpoint(save) else METRICS_FILE
        raise ConfigError(
            f"--save {save}: holds an earlier run ({what}), which would be overwritten; resume it with --load auto, or "
            "choose another --save"
        )
    return ""
