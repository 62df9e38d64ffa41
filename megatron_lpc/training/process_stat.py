"""What Linux tells of a process."""

from __future__ import annotations

from pathlib import Path


def process_stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name: the state at index 0, the start time at index 19.

    Raises:
        OSError: there is no such process, or the system is no Linux.
    """
    # The name, in parentheses, may hold spaces and parentheses.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
