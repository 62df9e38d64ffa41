"""The gradient of z alone, many latents and latents that all pairs share, on a CPU."""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import Algorithm, pair_logps
from lpc_kernels.pair_logps import backend as backends
from lpc_kernels.pair_logps.chunk_logits import CPU_PIECE
from lpc_kernels.pair_logps.factored import MANY_LATENTS, FactoredBackend
from torch import Tensor
from torch.nn.functional import logsigmoid

from .pair_logps_cases import draw
from .test_pair_logps import Watch, assert_close
from .test_pair_logps_algorithms import expect, gradients, preference, run

Tensors = dict[str, Any]


def drawn(tokens: int, vocab: int, pairs: int, latents: int, *, shared: bool = False, only_z: bool = False) -> Tensors:
    """Inputs in fp64, hidden size 8."""
    inputs = draw(tokens, vocab, 8, pairs, latents, tokens + vocab + latents, torch.float64)
    if shared:
        inputs["z"] = inputs["z"].detach()[:, :1].requires_grad_()
    for name in ("hidden", "lm_head_weight"):
        inputs[name].requires_grad_(not only_z)
    return inputs


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each backend that a call has chosen, whether it is the factored one."""
    found: list[bool] = []
    original = backends.fastest_backend

    def noting(*arguments: Any) -> backends.Backend:
        chosen = original(*arguments)
        found.append(isinstance(chosen, FactoredBackend))
        return chosen

    for name in ("pairwise", "recompute", "scoring"):
        monkeypatch.setattr(import_module(f"lpc_kernels.pair_logps.{name}"), "fastest_backend", noting)
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    algorithm=st.sampled_from(["recompute", "pairwise", "auto"]),
    tokens=st.integers(0, 23),
    vocab=st.integers(1, 41),
    padding=st.integers(0, 9),
    pairs=st.integers(1, 4),
    latents=st.sampled_from([1, 2, 8, 11]),
    shared=st.booleans(),
    only_z=st.booleans(),
    chunk_size=st.sampled_from([3, 8, 1024]),
    softcap=st.sampled_from([None, None, 2.0]),
    temperature=st.sampled_from([1.0, 0.7]),
    with_entropy=st.booleans(),
)
def test_agrees_with_plain_autograd_in_fp64(
    algorithm: str,
    tokens: int,
    vocab: int,
    padding: int,
    pairs: int,
    latents: int,
    shared: bool,
    only_z: bool,
    chunk_size: int,
    softcap: float | None,
    temperature: float,
    with_entropy: bool,
) -> None:
    inputs = drawn(tokens, vocab + padding, pairs, latents, shared=shared, only_z=only_z)
    inputs["targets"] %= vocab
    common = {"vocab_size": vocab, "temperature": temperature}
    options: Tensors = {"algorithm": algorithm, "chunk_size": chunk_size, "with_entropy": with_entropy, **common}
    result, got = run(inputs, pairs, -1.5, logit_softcap=softcap, **options)
    with torch.no_grad():
        options["pair_loss"] = preference
        scored = pair_logps(**inputs, num_segments=2 * pairs, logit_softcap=softcap, **options)
    copied = inputs | {"z": inputs["z"].detach().expand(latents, pairs, 8)} if shared else inputs
    copied["z"].requires_grad_()
    sums, token_logps, loss, expected = expect(copied, pairs, -1.5, softcap=softcap, **common)
    for outputs in (result, scored):
        assert_close(outputs.logps, sums, 1e-11)
        assert_close(outputs.token_logps, token_logps, 1e-11)
    assert_close(result.loss, loss, 1e-11)
    for mine, theirs in zip(got[:-1], expected[:-1], strict=True):
        assert_close(mine, theirs, 1e-11)
    of_z = expected[-1].sum(1, keepdim=True) if shared else expected[-1]
    assert_close(got[-1], of_z, 1e-11)


@pytest.mark.parametrize("latents", [1, 2, MANY_LATENTS])
def test_the_gradient_of_z_alone_takes_one_large_product(latents: int, used: list[bool]) -> None:
    tokens, vocab = 200, 90
    inputs = drawn(tokens, vocab, 2, latents, only_z=True)
    with Watch() as watch:
        result = pair_logps(**inputs, num_segments=4, pair_loss=preference)
        gradients(result.loss, inputs)
    assert sum(prod(product) == tokens * vocab * 8 for product in watch.products) == 1
    assert watch.largest == tokens * vocab
    assert used == [True]


def test_auto_takes_recompute_for_the_gradient_of_z_where_a_pair_exceeds_the_chunk(used: list[bool]) -> None:
    inputs = drawn(40, 11, 1, 2, only_z=True)
    with Watch() as watch:
        _, got = run(inputs, 1, algorithm="auto", chunk_size=9)
    assert watch.largest < 40 * 11
    assert used == [False, False]
    assert_close(got[0], expect(inputs, 1)[3][0], 1e-11)


def test_the_cheapest_backend_for_each_call(used: list[bool]) -> None:
    """The calls that were possible before compute what they did, to the bit."""
    for latents, shared, only_z in ((7, False, False), (8, False, False), (2, True, False), (1, True, False)):
        run(drawn(20, 13, 3, latents, shared=shared, only_z=only_z), 3)
    run(drawn(20, 13, 1, 2), 1)
    run(drawn(20, 13, 3, 8, only_z=True), 3, with_entropy=True)
    run(drawn(20, 13, 3, 8, only_z=True), 3, logit_softcap=3.0)
    assert used == [False, True, True, False, False, False, False]


@pytest.mark.parametrize("only_z", [False, True])
@pytest.mark.parametrize("algorithm", ["pairwise", "recompute"])
@pytest.mark.parametrize(("times", "is_factored"), [(15, True), (1000, False)])
def test_latents_that_move_logits_far_apart(
    times: float, is_factored: bool, algorithm: str, only_z: bool, used: list[bool]
) -> None:
    """There a product of two exponentials could be 0 for every token id, in fp32 or even in fp64."""
    inputs = drawn(20, 13, 3, 8, only_z=only_z)
    inputs["z"].data *= times
    options: Tensors = {"temperature": 0.7, "vocab_size": 11}
    inputs["targets"] %= 11
    sums, _, _, expected = expect(inputs, 3, **options)
    result, got = run(inputs, 3, algorithm=algorithm, chunk_size=9, **options)
    assert set(used) == {is_factored}
    assert_close(result.logps, sums, 1e-11)
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, 1e-11)


@pytest.mark.parametrize("times", [2.3, 6.0])
def test_fp32_is_as_exact_as_with_an_exponential_per_latent(times: float) -> None:
    """Latents that move the logits by up to 50 or 130, common offsets of 100: the sums' error is that of rounding."""
    inputs = {name: x.float() if x.is_floating_point() else x for name, x in drawn(60, 200, 3, 8).items()}
    inputs = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    inputs["z"].data *= times
    inputs["lm_head_weight"].data[:, -1] = 10.0
    inputs["hidden"].data[:, -1] = 10.0
    sums, _, _, expected = expect(inputs, 3)
    factored, got = run(inputs, 3)
    direct, others = run(inputs, 3, with_entropy=True)
    for mine, theirs, truth in zip((factored.logps, *got), (direct.logps, *others), (sums, *expected), strict=True):
        assert (mine.double() - truth).norm() <= 2 * (theirs.double() - truth).norm() + 1e-6 * truth.norm()


def with_reference(logps: Tensor, pairs: Tensor) -> Tensor:
    """DPO whose reference is the last latent, which gets no gradient."""
    ratios = logps[0] - logps[1].detach()
    return -logsigmoid(0.1 * (ratios[0] - ratios[1])) + 0.0 * pairs


@pytest.mark.parametrize("only_z", [False, True])
@pytest.mark.parametrize("algorithm", ["pairwise", "recompute"])
def test_a_latent_that_the_loss_detaches(only_z: bool, algorithm: str) -> None:
    inputs = drawn(30, 19, 3, 2, only_z=only_z)
    inputs["z"].data[1] = 0
    result, got = run(inputs, 3, pair_loss=with_reference, algorithm=algorithm, chunk_size=9)
    no_latent = inputs | {"z": inputs["z"].detach()[0].clone().requires_grad_()}
    with torch.no_grad():
        reference = pair_logps(**(inputs | {"z": None}), num_segments=6).logps.view(2, 3)

    def given_reference(logps: Tensor, pairs: Tensor) -> Tensor:
        ratios = logps[0] - reference[:, pairs]
        return -logsigmoid(0.1 * (ratios[0] - ratios[1]))

    alone, expected = run(no_latent, 3, pair_loss=given_reference, algorithm="recompute")
    assert_close(result.loss, alone.loss, 1e-11)
    for mine, theirs in zip(got[:-1], expected[:-1], strict=True):
        assert_close(mine, theirs, 1e-11)
    assert_close(got[-1][0], expected[-1], 1e-11)
    assert not got[-1][1].any()


@pytest.mark.parametrize("algorithm", ["pairwise", "recompute"])
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_64_shared_latents_take_the_memory_of_one(algorithm: Algorithm, wants_gradient: bool) -> None:
    """No tensor is larger than a chunk of logits, or [L, V], and none is held for each pair."""
    tokens, vocab, pairs, latents, chunk = 400, 90, 20, 64, 80
    inputs = drawn(tokens, vocab, pairs, latents, shared=True)
    inputs["segment_ids"] = torch.arange(tokens) // (tokens // (2 * pairs))
    with Watch() as watch, torch.set_grad_enabled(wants_gradient):
        result = pair_logps(
            **inputs, num_segments=2 * pairs, pair_loss=preference, algorithm=algorithm, chunk_size=chunk
        )
        if wants_gradient:
            gradients(result.loss, inputs)
    # The statistics are [3, L, N].
    assert watch.largest <= max(chunk * vocab, latents * vocab, 3 * latents * tokens)
    assert sum(prod(product) == chunk * vocab * 8 for product in watch.products) % (tokens // chunk) == 0


def test_expanded_latents_without_gradient_are_shared(used: list[bool]) -> None:
    inputs = drawn(20, 13, 3, 3, shared=True)
    expanded = inputs | {"z": inputs["z"].expand(3, 3, 8)}
    with torch.no_grad():
        one, other = (pair_logps(**given_, num_segments=6) for given_ in (inputs, expanded))
    assert torch.equal(one.logps, other.logps)
    assert used == [True, True]
    assert_close(run(expanded, 3)[0].logps, one.logps, 1e-11)


@pytest.mark.parametrize("only_z", [False, True])
def test_a_larger_vocabulary_than_one_product_takes(only_z: bool) -> None:
    inputs = drawn(23, 2 * CPU_PIECE + 5, 2, 9, only_z=only_z)
    sums, _, _, expected = expect(inputs, 2)
    result, got = run(inputs, 2, chunk_size=20)
    assert_close(result.logps, sums, 1e-11)
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, 1e-11)


def test_two_runs_give_the_same_bits() -> None:
    def once() -> tuple[Tensor, ...]:
        result, got = run(drawn(60, 37, 4, 9), 4, chunk_size=17)
        return (result.logps, result.loss, *got)

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))
