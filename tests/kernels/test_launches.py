"""The project's own launches as an H100 would get them, see `dry_run.py`; nothing runs, so no value is looked at."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lpc_kernels import pair_logps
from torch import Tensor

pytest.importorskip("triton", reason="PyTorch for CPU comes without Triton: pip install triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

from . import launch_calls as calls  # noqa: E402
from .dry_run import KERNELS, DryRun, dry_run  # noqa: E402

SHARED_MEMORY = 227 * 1024
"""Bytes that a block may have on an H100."""
ALGORITHMS = ("recompute", "pairwise", "frozen")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled kernels, for this file."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def launched(cache: Path) -> Iterator[DryRun]:
    with dry_run(cache) as record:
        yield record


@pytest.fixture
def counted(cache: Path) -> Iterator[DryRun]:
    with dry_run(cache, compiles=False) as record:
        yield record


def assert_fits(record: DryRun, stack: int = 0) -> None:
    """stack: bytes of spilled registers that a thread may have."""
    for launch in record.launches:
        assert launch.shared <= SHARED_MEMORY, launch
        assert launch.resources.stack <= stack, launch


@pytest.mark.parametrize("latents", [None, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_of_any_shape_share_one_compilation(counted: DryRun, algorithm: str, latents: int | None) -> None:
    """The last chunk is shorter than the others, and chunks of whole pairs start anywhere."""
    for lengths in calls.MICRO_BATCHES:
        calls.train_and_score(lengths, algorithm, latents, chunk_size=48)
    assert Counter(counted.compilations) == {"token_stats": 1, "logits_gradient": 1, "fused_stats": 1}


def test_mixing_any_number_of_pairs_under_any_seed_shares_one_compilation(counted: DryRun) -> None:
    for pairs in (1, 2, 3, 16, 48, 57):
        for seed in (0, 1, 2, 16, 2**31, 2**40, -1):
            calls.mix(pairs, 64, 128, seed=seed)
    assert Counter(counted.compilations) == {"forward": 1, "backward_weights": 1, "backward_inputs": 1}


def test_an_odd_vocabulary_has_aligned_logits(launched: DryRun) -> None:
    for algorithm in ALGORITHMS:
        calls.score([20, 20], vocab=129, latents=2, algorithm=algorithm)
    for launch in launched.launches:
        assert launch.arguments["stride"] == 192
        assert launch.arguments["product"].data_ptr() % 16 == 0


def test_the_kernels_of_training_compile_and_fit(launched: DryRun) -> None:
    for latents in (0, None, 2, 64):
        calls.train_and_score([32] * 8, "pairwise", latents, vocab=1024, hidden_size=128)
    calls.mix(16, 64, 128)
    calls.mix(16, 256, 128, straight_through=True)
    assert {launch.kernel for launch in launched.launches} == {kernel.fn.__name__ for kernel in KERNELS}
    assert_fits(launched)


def host_reads(run: Callable[[], None]) -> Counter[str]:
    """Calls by which Python reads a tensor, and so waits for a GPU."""
    reads: Counter[str] = Counter()
    names = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero")
    with pytest.MonkeyPatch.context() as patches:
        for name in names:
            original = getattr(Tensor, name)

            def counting(
                self: Tensor, *arguments: Any, original: Callable[..., Any] = original, name: str = name
            ) -> Any:
                reads[name] += 1
                return original(self, *arguments)

            patches.setattr(Tensor, name, counting)
        run()
    return reads


@pytest.mark.parametrize("latents", [None, 2])
@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("auto", {"tolist": 1}), ("pairwise", {"tolist": 1}), ("recompute", {}), ("frozen", {})],
)
def test_waits_for_the_gpu_once_at_most(
    counted: DryRun, algorithm: str, latents: int | None, expected: dict[str, int]
) -> None:
    reads = host_reads(lambda: calls.score([5, 9, 4, 6], latents=latents, algorithm=algorithm, chunk_size=16))
    assert reads == expected
    assert not host_reads(lambda: calls.score([5, 9, 4, 6], latents=latents, trains=False))


UNUSUAL: dict[str, dict[str, Any]] = {
    "one token": {"lengths": [1, 0], "latents": 0},
    "one token id": {"lengths": [3, 4], "vocab": 1},
    "hidden size 1": {"lengths": [3, 4], "hidden_size": 1},
    "unaligned": {"lengths": [3, 4, 9, 2], "vocab": 131, "hidden_size": 67, "offset": 1},
    "3 latents, entropy": {"lengths": [20, 20], "with_entropy": True, "latents": 3},
    "16 latents": {"lengths": [20, 20], "latents": 16},
    "64 latents, entropy": {"lengths": [20, 20], "latents": 64, "with_entropy": True},
    "17 latents, soft cap": {"lengths": [20, 20], "latents": 17, "logit_softcap": 30.0},
    "z only": {"lengths": [20, 20], "latents": 2, "trained": ("z",)},
    "64 latents, z only": {"lengths": [20, 20], "latents": 64, "trained": ("z",)},
    "soft cap": {"lengths": [20, 20], "logit_softcap": 30.0, "temperature": 0.7},
    "fp32": {"lengths": [20, 20], "dtype": torch.float32},
    "fp16": {"lengths": [20, 20], "dtype": torch.float16, "latents": 0},
    "fp64": {"lengths": [20, 20], "dtype": torch.float64},
}
"""Arguments that make Triton compile another kernel."""
SPILLS = {"fp64": 8}
"""Bytes per thread; fp64 is for tests."""


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_calls_compile(launched: DryRun, case: str) -> None:
    options = UNUSUAL[case]
    calls.score(algorithm="pairwise", **options)
    calls.score(trains=False, **options)
    kernels = {launch.kernel for launch in launched.launches}
    assert {"token_stats", "fused_stats" if options.get("dtype") != torch.float64 else "token_stats"} <= kernels
    assert kernels & {"logits_gradient", "many_latents_gradient"}
    assert_fits(launched, SPILLS.get(case, 0))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["recompute", "frozen"])
@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_calls_compile_with_every_algorithm(launched: DryRun, case: str, algorithm: str) -> None:
    calls.score(algorithm=algorithm, **UNUSUAL[case])
    assert_fits(launched, SPILLS.get(case, 0))


def test_offsets_beyond_two_to_the_31(launched: DryRun) -> None:
    """Rows that lie 2^31 elements apart; memory that nobody touches."""
    far = torch.empty(2**31 + 64, dtype=torch.bfloat16).as_strided((2, 64), (2**31, 1))
    weight = torch.zeros(128, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        pair_logps(far, weight, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), 2)
    (launch,) = launched.launches
    assert launch.types["hidden_stride"] == "i64"
    assert_fits(launched)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_shard_without_vocabulary_launches_nothing(launched: DryRun, algorithm: calls.Chosen) -> None:
    calls.score_without_vocabulary(algorithm)
    assert not launched.launches


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": 1, "codes": 1, "hidden_size": 1},
        {"pairs": 3, "codes": 7, "hidden_size": 33, "straight_through": True},
        {"pairs": 2, "codes": 16, "hidden_size": 64, "dtype": torch.float64, "codebook_dtype": torch.float64},
        {"pairs": 2, "codes": 16, "hidden_size": 64, "dtype": torch.bfloat16, "codebook_dtype": torch.float16},
        {"pairs": 2, "codes": 16, "hidden_size": 64, "seed": -1, "codebook_dtype": torch.float32},
        {"pairs": 2, "codes": 16, "hidden_size": 64, "seed": 2**40, "codebook_dtype": torch.float32},
    ],
)
def test_unusual_mixing_compiles(launched: DryRun, options: dict[str, Any]) -> None:
    calls.mix(**options)
    assert {launch.kernel for launch in launched.launches} == {"forward", "backward_weights", "backward_inputs"}
    assert_fits(launched)


def test_mixing_with_every_gradient_compiles(launched: DryRun) -> None:
    calls.mix_backward_of_everything()
    assert_fits(launched)
