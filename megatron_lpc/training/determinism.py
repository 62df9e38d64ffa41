"""`--deterministic`: the same run gives the same bits, or does not start.

As in Megatron-LM, what contradicts it is refused and never overridden.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import torch

from megatron_lpc.config import Config, ConfigError

_CUBLAS_WORKSPACES = (":4096:8", ":16:8")
_NCCL_ALGORITHMS = ("Tree", "Ring", "CollnetDirect", "CollnetChain", "^NVLS")


def use_deterministic_algorithms(config: Config, device_type: str, world_size: int) -> None:
    """Choose torch's deterministic algorithms, where `deterministic` is set; else nothing changes.

    Later, torch raises RuntimeError at an operation that has no deterministic algorithm.

    Raises:
        ConfigError: on CUDA, the environment does not make cuBLAS, NCCL or TransformerEngine deterministic; every
            problem on a line of its own.
    """
    if not config.training.deterministic:
        return
    if device_type == "cuda":
        uses_te = config.model.transformer_impl == "transformer_engine"
        problems = list(_cuda_problems(os.environ, world_size, uses_te))
        if problems:
            raise ConfigError("\n".join(problems))
    torch.use_deterministic_algorithms(True)


def _cuda_problems(environment: Mapping[str, str], world_size: int, uses_te: bool) -> Iterator[str]:
    """What libraries read from the environment, and only before their first use."""
    workspace = environment.get("CUBLAS_WORKSPACE_CONFIG", "unset")
    if workspace not in _CUBLAS_WORKSPACES:
        yield (
            f"--deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace}, and cuBLAS repeats its results only with "
            f"{' or '.join(_CUBLAS_WORKSPACES)}; set it in the environment of all ranks"
        )
    algorithm = environment.get("NCCL_ALGO", "unset")
    if world_size > 1 and algorithm not in _NCCL_ALGORITHMS:
        yield (
            f"--deterministic: NCCL_ALGO is {algorithm}, and sums over {world_size} ranks repeat only with one of "
            f"{', '.join(_NCCL_ALGORITHMS)}; set it in the environment of all ranks"
        )
    if uses_te and environment.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") != "0":
        yield (
            "--deterministic: TransformerEngine chooses algorithms that do not repeat their results; set "
            "NVTE_ALLOW_NONDETERMINISTIC_ALGO=0 in the environment of all ranks"
        )
