"""`--deterministic` refuses what cannot repeat its results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_lpc.config import Config, ConfigError, ModelConfig, TrainingConfig
from megatron_lpc.training.determinism import use_deterministic_algorithms

GOOD = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
CONFIG = Config(training=TrainingConfig(deterministic=True), model=ModelConfig(transformer_impl="transformer_engine"))


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    yield
    torch.use_deterministic_algorithms(False)


def test_nothing_changes_unless_asked() -> None:
    use_deterministic_algorithms(Config(), "cuda", 2)
    assert not torch.are_deterministic_algorithms_enabled()


def test_torch_is_told() -> None:
    use_deterministic_algorithms(CONFIG, "cuda", 2)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", None, "CUBLAS_WORKSPACE_CONFIG is unset"),
        ("CUBLAS_WORKSPACE_CONFIG", ":1:1", "CUBLAS_WORKSPACE_CONFIG is :1:1"),
        ("NCCL_ALGO", None, "NCCL_ALGO is unset, and sums over 2 ranks"),
        ("NCCL_ALGO", "NVLS", "NCCL_ALGO is NVLS"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", None, "NVTE_ALLOW_NONDETERMINISTIC_ALGO=0"),
    ],
)
def test_environment_that_does_not_repeat_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        use_deterministic_algorithms(CONFIG, "cuda", 2)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_and_a_single_rank_need_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_ALGO")
    use_deterministic_algorithms(CONFIG, "cuda", 1)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    use_deterministic_algorithms(CONFIG, "cpu", 4)
    assert torch.are_deterministic_algorithms_enabled()
