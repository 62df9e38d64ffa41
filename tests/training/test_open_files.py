"""Steps and saves leave no file open and no process behind; `tests/distributed/test_growth.py` is the long form."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from frozen_runs import UNFROZEN, config_of

from megatron_lpc.config import with_options
from megatron_lpc.train import train_on
from megatron_lpc.training.build import Run, assemble_run
from megatron_lpc.training.setup import RunContext


def held() -> tuple[int, str]:
    """Open files and children of this process."""
    return len(os.listdir("/proc/self/fd")), Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.mark.parametrize("flags", [[], ["--async-save"], ["--async-save", "--streaming"]], ids=" ".join)
def test_what_a_run_holds_does_not_grow(
    context: RunContext, tiny_run, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = with_options(
        config_of(tiny_run, *UNFROZEN, *flags), save=str(tmp_path / "run"), train_iters=8, save_interval=1, eval_iters=1
    )
    found: list[tuple[int, str]] = []
    save = Run.save_checkpoint

    def save_and_look(run: Run, *args: object) -> None:
        save(run, *args)
        run.checkpoints.finish()
        found.append(held())

    monkeypatch.setattr(Run, "save_checkpoint", save_and_look)
    train_on(assemble_run(replace(context, config=options)), 0.0)
    assert len(found) == 8
    assert set(found[2:]) == {found[2]}
