"""One run at a time in a folder, whatever became of the run before."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_lpc.config import ConfigError
from megatron_lpc.training import folder_lock
from megatron_lpc.training.folder_lock import only_run_in
from megatron_lpc.training.setup import RunContext

HOLDER = """
import os, sys, time
from pathlib import Path
from megatron_lpc.training import folder_lock
file = folder_lock._lock(Path(sys.argv[1]))
child = os.fork() if sys.argv[2] == "fork" else -1
if child:
    print(child, flush=True)
time.sleep(60)
"""

Holder = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Holder]:
    """Starts another process that holds `tmp_path / "run"`, and gives it with the id of its fork, if it has one."""
    started: list[tuple[subprocess.Popen[str], int]] = []

    def start(*, forks: bool = False) -> tuple[subprocess.Popen[str], int]:
        arguments = [str(tmp_path / "run"), "fork" if forks else "alone"]
        process = subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started.append((process, int(process.stdout.readline())))
        return started[-1]

    yield start
    for process, child in started:
        process.kill()
        process.wait()
        if child > 0:
            os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def test_a_second_run_is_refused_and_told_who_is_there(context: RunContext, hold: Holder, tmp_path: Path) -> None:
    other, _ = hold()
    with pytest.raises(ConfigError) as error, only_run_in(str(tmp_path / "run")):
        pass
    assert re.fullmatch(
        rf"--save {tmp_path / 'run'}: is in use by another run \(process {other.pid} on {socket.gethostname()}, since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\); wait until it has ended, or choose another --save",
        str(error.value),
    )


def test_the_lock_of_a_killed_run_is_taken_over(context: RunContext, hold: Holder, tmp_path: Path) -> None:
    other, _ = hold()
    other.kill()
    other.wait()
    assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == other.pid
    with only_run_in(str(tmp_path / "run")):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_a_writer_that_outlives_its_run_still_holds_it(context: RunContext, hold: Holder, tmp_path: Path) -> None:
    other, child = hold(forks=True)
    other.kill()
    other.wait()
    with pytest.raises(ConfigError, match="is in use by another run"), only_run_in(str(tmp_path / "run")):
        pass
    assert child > 0


def test_the_lock_ends_with_the_run(context: RunContext, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        with only_run_in(str(folder)):
            (folder / "config.yaml").touch()
    assert (folder / ".lock").read_text() == ""


def test_a_refused_run_leaves_no_folder(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data"), only_run_in(str(tmp_path / "run")):
        raise ConfigError("no data")
    assert not (tmp_path / "run").exists()


def test_without_save_there_is_nothing_to_hold(context: RunContext) -> None:
    with only_run_in(None):
        pass


def test_a_file_system_without_locks_is_named(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with only_run_in(str(tmp_path / "run")):
        pass
    assert "its file system has no locks" in capsys.readouterr().err


def test_a_file_is_no_folder(context: RunContext, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    message = r"--save .*/run: cannot be written \(File exists\)"
    with pytest.raises(ConfigError, match=message), only_run_in(str(tmp_path / "run")):
        pass
