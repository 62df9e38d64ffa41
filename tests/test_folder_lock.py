"""One run at a time in a folder, whatever became of the run before."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_lpc import folder_lock
from megatron_lpc.command_line import UserError, WriteFailed
from megatron_lpc.folder_lock import FolderLock

HOLDER = """
import os, sys, time
from pathlib import Path
from megatron_lpc.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
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
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def test_a_second_run_is_refused_and_told_who_is_there(hold: Holder, tmp_path: Path) -> None:
    other, _ = hold()
    with pytest.raises(UserError) as error:
        FolderLock(tmp_path / "run")
    assert re.fullmatch(
        rf"--save {tmp_path / 'run'}: is in use by another run \(process {other.pid} on {socket.gethostname()}, since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\); wait until it has ended, or choose another --save",
        str(error.value),
    )


def test_the_lock_of_a_killed_run_is_taken_over(hold: Holder, tmp_path: Path) -> None:
    other, _ = hold()
    other.kill()
    other.wait()
    assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == other.pid
    lock = FolderLock(tmp_path / "run")
    assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_a_writer_that_outlives_its_run_is_waited_for(
    hold: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.5)
    other, child = hold(forks=True)
    other.kill()
    other.wait()
    with pytest.raises(UserError, match="is in use by another run"):
        FolderLock(tmp_path / "run")
    threading.Timer(0.5, os.kill, (child, signal.SIGKILL)).start()
    monkeypatch.setattr(folder_lock, "_PATIENCE", 30.0)
    FolderLock(tmp_path / "run").release()


def test_the_lock_ends_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        lock = FolderLock(folder)
        (folder / "config.yaml").touch()
        lock.release()
    assert (folder / ".lock").read_text() == ""


def test_a_folder_without_files_is_removed(tmp_path: Path) -> None:
    FolderLock(tmp_path / "run").release()
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    FolderLock(tmp_path / "run").release()
    assert "its file system has no locks" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    message = r"--save .*/run: cannot be written \(File exists\)"
    with pytest.raises(WriteFailed, match=message):
        FolderLock(tmp_path / "run")
