"""Start real processes, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun_command(
    processes: int, script: Path | str, *arguments: str, rendezvous: tuple[str, ...] = ("--standalone",)
) -> list[str]:
    """What starts a script (or, after `-m`, a module) on `processes` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}"]
    return [*launcher, str(script), *arguments]


def torchrun(
    processes: int, script: Path | str, *arguments: str, timeout: float = 300, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script (or, after `-m`, a module) on `processes` ranks of this machine; on failure show its output."""
    return run(torchrun_command(processes, script, *arguments), timeout=timeout, check=check)


def run(
    command: list[str], timeout: float = 300, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; on failure show its output."""
    variables = ENVIRONMENT | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=variables, check=False)
    assert done.returncode == 0 or not check, (
        f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    )
    return done
