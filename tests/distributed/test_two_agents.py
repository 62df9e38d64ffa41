"""Several machines: two `torchrun` agents, each with one pipeline stage, train as one agent with both does."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launch import ENVIRONMENT, torchrun, torchrun_command

from megatron_lpc.training.metrics_file import read_metrics

pytestmark = pytest.mark.distributed


def test_pipeline_across_two_agents(tiny_run, tmp_path: Path) -> None:
    flags = ["--config", tiny_run.config, "--train-iters", "3", "--pipeline-model-parallel-size", "2", "--save"]
    torchrun(2, "-m", "megatron_lpc.train", *flags, str(tmp_path / "one"))
    port = _free_port()
    agents = []
    for rank in range(2):
        rendezvous = ("--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}")
        command = torchrun_command(1, "-m", "megatron_lpc.train", *flags, str(tmp_path / "two"), rendezvous=rendezvous)
        agents.append(
            subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for agent in agents:
        output = agent.communicate(timeout=300)[0]
        assert agent.returncode == 0, output
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == 3 + 4, "three steps, and two sets under two latents"
    assert two == one, "to the last bit"


def _losses(save: Path) -> list[tuple[Any, ...]]:
    return [
        (line["iteration"], line.get("evaluation"), line["loss"], line.get("grad_norm"))
        for line in read_metrics(save / "metrics.jsonl")
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
