"""A run of the training program under a launcher, to which something is done while it trains."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch import ENVIRONMENT
from process_tree import children, descendants, kill
from run_files import steps_done

from megatron_lpc.training.checkpoint_folder import complete_checkpoints

LAUNCHER = ("-m", "megatron_lpc.launch", "--standalone")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


@dataclass
class WatchedRun:
    """The launcher, and the files of its run."""

    process: subprocess.Popen[str]
    save: Path
    log: Path

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """Lines of errors, which the run itself says."""
        return [line for line in self.text.splitlines() if line.startswith("error: ")]

    @property
    def workers(self) -> list[int]:
        """Processes of the ranks, in order."""
        return [pid for pid in children(self.process.pid) if b"megatron_lpc" in command_line(pid)]

    @property
    def steps(self) -> int:
        """Steps done."""
        return steps_done(self.save)

    @property
    def saved(self) -> list[int]:
        """Steps of complete checkpoints."""
        if not self.save.is_dir():
            return []
        return [int(folder.name.removeprefix("iter_")) for folder in complete_checkpoints(self.save)]

    def wait_until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """A busy machine is slow; only a run that hangs takes longer."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended too early:\n{self.text[-6000:]}"
            assert time.monotonic() < end, f"it takes too long:\n{self.text[-6000:]}"
            time.sleep(0.02)

    def end(self, seconds: float = 200) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text[-6000:]}") from None


@contextmanager
def watched_run(
    folder: Path, *flags: str, launcher: tuple[str, ...] = LAUNCHER, processes: int = 2
) -> Iterator[WatchedRun]:
    """Train with these flags; whatever is left of it at the end is killed. Without a launcher: the program alone."""
    save, log = folder / "run", folder / "log"
    command = [sys.executable, *launcher, *([f"--nproc-per-node={processes}"] if launcher else [])]
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, "-m", "megatron_lpc.train", "--save", str(save), *flags],
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    run = WatchedRun(process, save, log)
    try:
        yield run
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            kill(pid)
        process.wait()


def command_line(pid: int) -> bytes:
    """What a process was started with."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
