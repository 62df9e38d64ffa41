"""How a CUDA process starts, with stand-ins for torch.cuda and the process group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_lpc.config import Config, DataConfig, ParallelConfig
from megatron_lpc.platform import Platform
from megatron_lpc.training import setup

HOPPER, BLACKWELL = (9, 0), (10, 0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments with which the process group was made, on GPU 0."""
    calls: list[dict[str, Any]] = []
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    gpu = Platform(torch.device("cuda", 0), "nccl")
    monkeypatch.setattr(setup, "select_platform", lambda device, local_rank: gpu)
    monkeypatch.setattr(setup, "validate", lambda *arguments: None)
    monkeypatch.setattr(setup, "split_world", lambda *arguments: None)
    monkeypatch.setattr(setup, "start_heartbeat", lambda *arguments: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: calls.append(options))
    return calls


def start(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], tensor_parallel: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    parallel = ParallelConfig(device="cuda", tensor_model_parallel_size=tensor_parallel)
    setup.start_distributed(Config(data=DataConfig(train_data=["none"], tokenizer_model="none"), parallel=parallel))


def test_the_process_group_knows_its_gpu(monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]) -> None:
    start(monkeypatch, HOPPER, 1)
    assert [options["device_id"] for options in started] == [torch.device("cuda", 0)]


@pytest.mark.parametrize(
    ("capability", "tensor_parallel", "variable", "warns"),
    [
        (HOPPER, 2, None, True),
        (HOPPER, 2, "8", True),
        (HOPPER, 2, "1", False),
        (HOPPER, 1, None, False),
        (BLACKWELL, 2, None, False),
    ],
)
def test_kernels_out_of_order_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: list[dict[str, Any]],
    capability: tuple[int, int],
    tensor_parallel: int,
    variable: str | None,
    warns: bool,
) -> None:
    if variable is not None:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", variable)
    start(monkeypatch, capability, tensor_parallel)
    assert ("set CUDA_DEVICE_MAX_CONNECTIONS=1" in capsys.readouterr().err) == warns
