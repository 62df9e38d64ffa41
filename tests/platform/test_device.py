"""Which platform a process gets, and what it answers."""

from __future__ import annotations

import pytest
import torch

from megatron_lpc.platform import Platform, select_platform

CPU = Platform(torch.device("cpu"), "gloo")


def test_the_generator_of_a_cpu_is_torchs_own() -> None:
    state = CPU.generator_state()
    drawn = torch.rand(3)
    CPU.set_generator_state(state)
    assert torch.equal(torch.rand(3), drawn)


def test_a_cpu_has_no_fused_extensions() -> None:
    assert not CPU.is_cuda
    assert CPU.name == "cpu"
    assert CPU.transformer_options()["use_cpu_initialization"]
    CPU.synchronize()


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: torch sees no GPU"):
        select_platform("cuda")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="local rank 2 has no GPU: torch sees 2; lower --nproc-per-node"):
        select_platform("auto", local_rank=2)
