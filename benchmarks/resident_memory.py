"""Resident memory of this process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: `VmRSS` now, `VmHWM` at its highest.

    Raises OSError on a system without /proc.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
