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
from torch.nn.functional import logsigmoid

pytest.importorskip("triton", reason="PyTorch for CPU comes without Triton: pip install triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

from lpc_kernels.gumbel_mix.ops import gumbel_mix_op  # noqa: E402
from lpc_kernels.gumbel_mix.triton_backend import Saved, Upstream, backward  # noqa: E402

from lpc_kernels.pair_logps.algorithms import ALGORITHMS as ALGORITHM_FUNCTIONS  # noqa: E402
from lpc_kernels.pair_logps.algorithms import Chosen  # noqa: E402
from lpc_kernels.pair_logps.problem import Problem  # noqa: E402
from lpc_kernels.pair_logps.segments import segments_in_response_order  # noqa: E402
from lpc_kernels.pair_logps.vocab_shard import VocabShard  # noqa: E402

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


def pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
    return -logsigmoid(logps[:, 0] - logps[:, 1]).sum(0)


def score(
    lengths: list[int],
    *,
    vocab: int = 128,
    hidden_size: int = 64,
    latents: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    trains: bool = True,
    offset: int = 0,
    **options: Any,
) -> None:
    """One call on responses of these lengths, chosen ones first, and its backward pass where it `trains`.

    latents: None for z of [P, H], 0 for no z.
    offset: elements before the first of hidden and of the LM head.
    """
    num_pairs = len(lengths) // 2
    segment_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    width = hidden_size + offset
    weight = torch.zeros(vocab, width, dtype=dtype)[:, offset:].requires_grad_(options.get("algorithm") != "frozen")
    hidden = torch.zeros(segment_ids.numel(), width, dtype=dtype)[:, offset:].requires_grad_()
    shape = (num_pairs, hidden_size) if latents is None else (latents, num_pairs, hidden_size)
    z = None if latents == 0 else torch.zeros(shape, dtype=dtype, requires_grad=True)
    with torch.set_grad_enabled(trains):
        result = pair_logps(
            hidden,
            weight,
            torch.zeros(segment_ids.numel(), dtype=torch.int64),
            segment_ids,
            len(lengths),
            z=z,
            pair_loss=pair_loss,
            **options,
        )
    if trains:
        assert result.loss is not None
        result.loss.backward()


def mix(
    pairs: int,
    codes: int,
    hidden_size: int,
    *,
    seed: int = 1234,
    straight_through: bool = False,
    dtype: torch.dtype = torch.float32,
    codebook_dtype: torch.dtype = torch.bfloat16,
) -> None:
    """`gumbel_mix` and the backward pass of a loss of z and of the KL."""
    logits_q, logits_p = (torch.zeros(pairs, codes, dtype=dtype, requires_grad=True) for _ in range(2))
    codebook = torch.zeros(codes, hidden_size, dtype=codebook_dtype, requires_grad=True)
    outputs = gumbel_mix_op(logits_q, logits_p, codebook, torch.arange(pairs), seed, 1.0, 0.5, straight_through)
    z, kl = outputs[:2]
    (z.float().sum() + kl.sum()).backward()


def assert_fits(record: DryRun, stack: int = 0) -> None:
    """stack: bytes of spilled registers that a thread may have."""
    for launch in record.launches:
        assert launch.shared <= SHARED_MEMORY, launch
        assert launch.resources.stack <= stack, launch


MICRO_BATCHES = [
    [32] * 8,
    [1, 1],
    [16, 16],
    [7, 9, 30, 2],
    [40, 3, 5, 17, 29, 31],
    [0, 64, 3, 0],
    [33] * 32,
]
"""Lengths of responses whose numbers of tokens, pairs and segments are 1, divisible by 16 and neither."""


def train_and_score(lengths: list[int], algorithm: str, latents: int | None, **options: Any) -> None:
    score(lengths, algorithm=algorithm, latents=latents, **options)
    score(lengths, latents=latents, trains=False, **options)


@pytest.mark.parametrize("latents", [None, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_of_any_shape_share_one_compilation(counted: DryRun, algorithm: str, latents: int | None) -> None:
    """The last chunk is shorter than the others, and chunks of whole pairs start anywhere."""
    for lengths in MICRO_BATCHES:
        train_and_score(lengths, algorithm, latents, chunk_size=48)
    assert Counter(counted.compilations) == {"token_stats": 1, "logits_gradient": 1, "fused_stats": 1}


def test_mixing_any_number_of_pairs_under_any_seed_shares_one_compilation(counted: DryRun) -> None:
    for pairs in (1, 2, 3, 16, 48, 57):
        for seed in (0, 1, 2, 16, 2**31, 2**40, -1):
            mix(pairs, 64, 128, seed=seed)
    assert Counter(counted.compilations) == {"forward": 1, "backward_weights": 1, "backward_inputs": 1}


def test_an_odd_vocabulary_has_aligned_logits(launched: DryRun) -> None:
    for algorithm in ALGORITHMS:
        score([20, 20], vocab=129, latents=2, algorithm=algorithm)
    for launch in launched.launches:
        assert launch.arguments["stride"] == 192
        assert launch.arguments["product"].data_ptr() % 16 == 0


def test_the_kernels_of_training_compile_and_fit(launched: DryRun) -> None:
    for latents in (0, None, 2):
        train_and_score([32] * 8, "pairwise", latents, vocab=1024, hidden_size=128)
    mix(16, 64, 128)
    mix(16, 256, 128, straight_through=True)
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
    reads = host_reads(lambda: score([5, 9, 4, 6], latents=latents, algorithm=algorithm, chunk_size=16))
    assert reads == expected
    assert not host_reads(lambda: score([5, 9, 4, 6], latents=latents, trains=False))


UNUSUAL: dict[str, dict[str, Any]] = {
    "one token": {"lengths": [1, 0], "latents": 0},
    "one token id": {"lengths": [3, 4], "vocab": 1},
    "hidden size 1": {"lengths": [3, 4], "hidden_size": 1},
    "unaligned": {"lengths": [3, 4, 9, 2], "vocab": 131, "hidden_size": 67, "offset": 1},
    "3 latents, entropy": {"lengths": [20, 20], "with_entropy": True, "latents": 3},
    "16 latents": {"lengths": [20, 20], "latents": 16},
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
    score(algorithm="pairwise", **UNUSUAL[case])
    score(trains=False, **UNUSUAL[case])
    assert {launch.kernel for launch in launched.launches} >= {"token_stats", "logits_gradient"}
    assert_fits(launched, SPILLS.get(case, 0))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["recompute", "frozen"])
@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_calls_compile_with_every_algorithm(launched: DryRun, case: str, algorithm: str) -> None:
    score(algorithm=algorithm, **UNUSUAL[case])
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
def test_a_shard_without_vocabulary_launches_nothing(launched: DryRun, algorithm: Chosen) -> None:
    hidden, weight, z = (torch.zeros(rows, 8, requires_grad=algorithm != "frozen") for rows in (9, 4, 2))
    segment_ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    problem = Problem(
        hidden=hidden,
        lm_head_weight=weight,
        z=z[None],
        targets=torch.zeros(9, dtype=torch.int64),
        segments=segments_in_response_order(segment_ids, 4, 2),
        shard=VocabShard(vocab_start=4, vocab_local=0, group_name=None, softcap=None, temperature=1.0),
        chunk_size=4,
        with_entropy=False,
        pair_loss=pair_loss,
    )
    scores = ALGORITHM_FUNCTIONS[algorithm](problem)
    if algorithm != "frozen":
        loss = scores.token_logps.sum() if scores.loss is None else scores.loss
        loss.backward()
    ALGORITHM_FUNCTIONS["scoring"](problem)
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
    mix(**options)
    assert {launch.kernel for launch in launched.launches} == {"forward", "backward_weights", "backward_inputs"}
    assert_fits(launched)


def test_mixing_with_every_gradient_compiles(launched: DryRun) -> None:
    pairs, codes, hidden_size = 3, 8, 32
    of_codes = [torch.zeros(pairs, codes) for _ in range(6)]
    codebook = torch.zeros(codes, hidden_size)
    saved = Saved(*of_codes[:2], codebook, *of_codes[2:])
    of_pairs = [torch.zeros(pairs + 1)[1:] for _ in range(3)]
    d_kl, d_entropy_q, d_entropy_p = of_pairs
    upstream = Upstream(torch.zeros(pairs, hidden_size), d_kl, *of_codes[:2], d_entropy_q, d_entropy_p, *of_codes[2:4])
    backward(saved, upstream, tau=1.0, prior_mix=0.5)
    assert_fits(launched)
