"""SIGTERM to the torchrun agent, as schedulers send it: a save that takes longer than torchrun's 30 s survives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import ENVIRONMENT, run, torchrun_command

from megatron_lpc.training.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh"))
SAVE_SECONDS = 40
VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def timeout_of(script: Path) -> int | None:
    """What a launch script gives the agent when the variable is unset."""
    found = re.search(rf'^export {VARIABLE}="\$\{{{VARIABLE}:-(\d+)\}}"$', script.read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def test_every_launch_script_gives_the_agent_time() -> None:
    """By the variable, or by `megatron_lpc.launch`, which does so by itself."""
    launching = [script for script in SCRIPTS if re.search(r"^[^#]*\btorchrun ", script.read_text(), re.MULTILINE)]
    assert launching == [ROOT / "examples/cluster/torchrun.sh"]
    assert timeout_of(launching[0]) == 600


def test_slurm_signals_early_enough() -> None:
    script = (ROOT / "examples/cluster/slurm.sh").read_text()
    (lead,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", script, re.MULTILINE)
    timeout = timeout_of(ROOT / "examples/cluster/torchrun.sh")
    assert timeout is not None
    assert int(lead) > timeout


@pytest.mark.distributed
def test_a_slow_save_survives(tiny_run, tmp_path: Path) -> None:
    save, mark = tmp_path / "run", tmp_path / "writes"
    flags = ["--config", tiny_run.config, "--tensor-model-parallel-size", "2", "--save", str(save)]
    worker = str(Path(__file__).parent / "slow_save_worker.py")
    command = torchrun_command(2, worker, str(SAVE_SECONDS), str(mark), *flags, "--train-iters", "1000000")
    timeout = str(timeout_of(ROOT / "examples/cluster/torchrun.sh"))
    with subprocess.Popen(
        command,
        env=ENVIRONMENT | {VARIABLE: timeout},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as agent:
        metrics = save / "metrics.jsonl"
        _wait_until(agent, lambda: metrics.exists() and len(read_metrics(metrics)) >= 2)
        agent.send_signal(signal.SIGTERM)
        _wait_until(agent, mark.exists)
        os.killpg(agent.pid, signal.SIGTERM)  # Once more, and to every process, as SLURM signals a job step.
        output, errors = agent.communicate(timeout=SAVE_SECONDS + 180)

    assert "forcefully exiting" not in errors, errors
    assert (save / "latest_checkpointed_iteration.txt").exists(), errors
    iteration = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert f"The run exits early, after step {iteration}/1000000; its checkpoint is complete." in output
    assert agent.returncode == 1, "torchrun calls it a failure that it was signalled"
    assert "SignalException" in errors
    assert "Traceback" not in errors.split("SignalException")[0].replace("Traceback (most recent call last)", "", 1)

    one_more = str(iteration + 1)
    module = ["-m", "megatron_lpc.train", *flags, "--load", "auto", "--train-iters", one_more, "--eval-iters", "1"]
    module[module.index("--tensor-model-parallel-size") + 1] = "1"
    resumed = run([sys.executable, *module])
    assert f"step {one_more}/{one_more}" in resumed.stdout


def _wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300  # A busy machine starts slowly; only a process that hangs takes longer.
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
