"""Start real processes, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(
    processes: int, script: Path | str, *arguments: str, timeout: float = 300, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script (or, after `-m`, a module) on `processes` ranks of this machine; on failure show its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0 or not check, (
        f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    )
    return done
