"""A save that fails is one line with path and cause, and the older checkpoint is whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from frozen_runs import UNFROZEN, config_of
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint import filesystem

from megatron_lpc.command_line import WriteFailed
from megatron_lpc.config import with_options
from megatron_lpc.training import checkpoint_failure, checkpoint_writer, random_state
from megatron_lpc.training.build import Run, assemble_run
from megatron_lpc.training.checkpoint_verification import damage
from megatron_lpc.training.metrics_file import MetricsFile
from megatron_lpc.training.setup import RunContext

FULL = "No space left on device"


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def run(context: RunContext, tiny_run, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """With one checkpoint, after step 1."""
    options = with_options(
        config_of(tiny_run, *UNFROZEN), save=str(tmp_path / "run"), async_save=request.param, train_iters=4
    )
    built = assemble_run(replace(context, config=options))
    save(built, 1)
    return built


def save(run: Run, iteration: int) -> None:
    run.save_checkpoint(replace(run.start, iteration=iteration))
    run.checkpoints.finish()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, FULL)


def full_after_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full within a tensor, so torch's own writer fails too."""
    monkeypatch.setattr(checkpoint_writer._ChecksummedFile, "write", full)
    monkeypatch.setattr(filesystem, "_write_item", full)  # As the forked writers do.
    monkeypatch.setattr(filesystem_async, "_write_item", full)


def full_at_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_lpc.training.checkpoint.write_description", full)


def full_at_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise checkpoint_failure.SafetensorError(f"I/O error: {FULL} (os error 28)")

    monkeypatch.setattr(random_state, "save_file", fail)


def full_at_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not say why it failed; the disk does."""
    monkeypatch.setattr("torch.save", lambda *_: torch._C.PyTorchFileWriter("/dev/full").write_end_of_file())
    free = iter([10**12])
    monkeypatch.setattr(
        checkpoint_failure.shutil, "disk_usage", lambda _: SimpleNamespace(total=1, used=1, free=next(free, 0))
    )


def full_at_the_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_lpc.training.checkpoint_folder.write_text", full)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_failure.shutil, "disk_usage", lambda _: SimpleNamespace(free=12345678))


WAYS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    full_after_some: FULL,
    full_at_description: FULL,
    full_at_random_state: FULL,
    full_at_common: FULL,
    full_at_the_pointer: FULL,
    no_room: f"{FULL}: it needs ",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]) -> None:
    root = Path(run.config.checkpoint.save or "")
    if way is no_room:
        monkeypatch.setattr(checkpoint_failure, "_MARGIN", 12345678)
    with monkeypatch.context() as broken:
        way(broken)
        with pytest.raises(WriteFailed) as error:
            save(run, 2)
    message = str(error.value)
    assert message.startswith(f"{root}: the checkpoint of step 2 cannot be saved ({WAYS[way]}"), message
    assert (
        message.endswith("iter_0000001 is whole; make room and resume with --load auto") or way is full_at_the_pointer
    )
    assert "\n" not in message
    assert error.value.exit_code == 1
    assert damage(root / "iter_0000001", run.context, resumes=True) == []
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "1\n"
    save(run, 3)
    assert damage(root / "iter_0000003", run.context, resumes=True) == []
    assert not list(root.glob(".*.tmp"))


def test_a_folder_that_is_gone(run: Run) -> None:
    root = Path(run.config.checkpoint.save or "")
    shutil.rmtree(root)
    with pytest.raises(WriteFailed) as error:
        save(run, 2)
    assert str(error.value) == (
        f"{root}: the checkpoint of step 2 cannot be saved (No such file or directory); none is saved yet"
    )
    assert not root.exists(), "it is not made again, without the run's metrics and options"


def test_a_writer_that_is_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if not run.config.checkpoint.async_save:
        pytest.skip("the rank writes itself")
    root = Path(run.config.checkpoint.save or "")
    monkeypatch.setattr(filesystem_async, "_write_item", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    run.save_checkpoint(replace(run.start, iteration=2))
    (process,) = multiprocessing.active_children()
    process.join()
    with pytest.raises(WriteFailed) as error:
        run.checkpoints.poll()
    assert str(error.value) == (
        f"{root}: the checkpoint of step 2 cannot be saved (process {process.pid} on {socket.gethostname()}, "
        "which writes it for rank 0, was ended by SIGKILL); iter_0000001 is whole; resume with --load auto"
    )
    assert not error.value.is_known_elsewhere
    assert damage(root / "iter_0000001", run.context, resumes=True) == []


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with metrics:
        metrics._file.close()
        metrics._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115 - closed by `metrics`.
        with pytest.raises(WriteFailed) as error:
            metrics.write(1, {"loss": 0.5})
    assert str(error.value) == f"/dev/full: cannot be written ({FULL})"


def test_an_error_that_no_file_caused_keeps_its_trace(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr("megatron_lpc.training.checkpoint.save_random_state", fail)
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        save(run, 2)
