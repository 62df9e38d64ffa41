"""`pair_logps` on Triton.

`test_triton.py` runs this file with Triton's interpreter, and on a GPU with larger shapes.
"""

import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import pair_logps
from lpc_kernels.pair_logps import triton_backend
from lpc_kernels.pair_logps import triton_kernels as kernels
from lpc_kernels.pair_logps.backend import LogpsGradient, choose_backend
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import segments_in_response_order
from lpc_kernels.pair_logps.triton_backend import TritonBackend, fused_stats
from lpc_kernels.pair_logps.vocab_shard import VocabShard
from pair_logps_cases import draw as draw_on_cpu
from pair_logps_cases import reference
from torch.nn.functional import logsigmoid

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EXAMPLES, TOKENS, VOCAB, HIDDEN_SIZE = (25, 40, 600, 70) if INTERPRETED else (300, 400, 40000, 700)


def draw(*shape):
    return {name: x.detach().to(DEVICE).requires_grad_(x.requires_grad) for name, x in draw_on_cpu(*shape).items()}


def loss_of(logps, pairs):
    margins = 0.3 * (logps[:, 0] - logps[:, 1]) - 0.1 * pairs
    return (-logsigmoid(margins) + 0.05 * logps[:, 0].square() / 100).sum(0)


def run(inputs, pairs, **options):
    result = pair_logps(
        *(inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")),
        2 * pairs,
        **{"z": inputs["z"], "pair_loss": loss_of, "with_entropy": True, **options},
    )
    wanted = [x for x in inputs.values() if x is not None and x.requires_grad]
    return result, torch.autograd.grad(result.loss, wanted) if torch.is_grad_enabled() else ()


def expect(inputs, pairs, dtype=torch.float64, **options):
    exact = {
        name: x if x is None or not x.is_floating_point() else x.detach().to(dtype).requires_grad_(x.requires_grad)
        for name, x in inputs.items()
    }
    sums, token_logps = reference(
        exact["hidden"],
        exact["lm_head_weight"],
        exact["targets"],
        exact["segment_ids"],
        2 * pairs,
        exact["z"],
        **options,
    )
    loss = loss_of(sums.view(-1, 2, pairs), torch.arange(pairs, device=DEVICE)).sum()
    wanted = [x for x in exact.values() if x is not None and x.requires_grad]
    return sums, token_logps, torch.autograd.grad(loss, wanted)


def assert_close(got, expected, tolerance=1e-5):
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    algorithm=st.sampled_from(["recompute", "pairwise", "frozen"]),
    tokens=st.integers(0, TOKENS),
    vocab=st.integers(1, VOCAB),
    padding=st.integers(0, 9),
    hidden_size=st.integers(1, HIDDEN_SIZE),
    pairs=st.integers(1, 4),
    latents=st.sampled_from([None, 1, 2, 3]),
    with_z=st.booleans(),
    chunk_size=st.sampled_from([9, 1024]),
    softcap=st.sampled_from([None, 2.0]),
    temperature=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_plain_autograd(
    algorithm, tokens, vocab, padding, hidden_size, pairs, latents, with_z, chunk_size, softcap, temperature, seed
):
    inputs = draw(tokens, vocab + padding, hidden_size, pairs, latents, seed, torch.float32)
    inputs["targets"] %= vocab
    inputs["lm_head_weight"].requires_grad_(algorithm != "frozen")
    if not with_z:
        inputs["z"] = None
    options = {"vocab_size": vocab, "temperature": temperature}
    ours = {"chunk_size": chunk_size, "logit_softcap": softcap, **options}
    sums, token_logps, gradients = expect(inputs, pairs, softcap=softcap, **options)
    result, got = run(inputs, pairs, algorithm=algorithm, **ours)
    with torch.no_grad():
        fused, _ = run(inputs, pairs, **ours)
    for outputs in (result, fused):
        assert_close(outputs.logps, sums)
        assert_close(outputs.token_logps, token_logps)
        assert_close(outputs.entropy, result.entropy)
    for a, b in zip(got, gradients, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(algorithm, dtype):
    """Half precision no worse than plain PyTorch's, fp64 exact."""
    inputs = draw(24, 40, 12, 2, None, 4, dtype)
    inputs["lm_head_weight"].data.mul_(0.2)
    inputs["lm_head_weight"].requires_grad_(algorithm != "frozen")
    exact_sums, _, exact = expect(inputs, 2)
    sums, _, plain = expect(inputs, 2, dtype=dtype)
    result, got = run(inputs, 2, algorithm=algorithm, chunk_size=20)
    with torch.no_grad():
        fused, _ = run(inputs, 2)
    for ours, theirs, truth in zip(
        (result.logps, fused.logps, *got), (sums, sums, *plain), (exact_sums, exact_sums, *exact), strict=True
    ):
        assert (ours.double() - truth).norm() <= (theirs.double() - truth).norm() + 1e-12 * truth.norm()


@pytest.mark.parametrize("only_z", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "latents", "shared", "options"),
    [
        ("pairwise", 2, False, {}),
        ("recompute", 2, True, {}),
        ("recompute", triton_backend.LATENTS_AT_A_TIME + 2, False, {"logit_softcap": 2.0}),
        ("pairwise", triton_backend.LATENTS_AT_A_TIME + 2, True, {"temperature": 0.7}),
    ],
)
def test_many_latents_and_the_gradient_of_z_alone(algorithm, latents, shared, options, only_z):
    inputs = draw(21, 300, 8, 2, latents, 3, torch.float32)
    if shared:
        inputs["z"] = inputs["z"].detach()[:, :1].requires_grad_()
    for name in ("hidden", "lm_head_weight"):
        inputs[name].requires_grad_(not only_z)
    copied = inputs | {"z": inputs["z"].detach().expand(latents, 2, 8).requires_grad_()}
    names = {"softcap" if name == "logit_softcap" else name: value for name, value in options.items()}
    sums, token_logps, gradients = expect(copied, 2, **names)
    result, got = run(inputs, 2, algorithm=algorithm, chunk_size=30, **options)
    with torch.no_grad():
        fused, _ = run(inputs, 2, **options)
    for outputs in (result, fused):
        assert_close(outputs.logps, sums)
        assert_close(outputs.token_logps, token_logps)
    *others, of_z = gradients
    for a, b in zip(got, (*others, of_z.sum(1, keepdim=True) if shared else of_z), strict=True):
        assert_close(a, b)


def test_statistics_of_tiles_do_not_grow_with_the_latents(monkeypatch):
    """A call is made in launches of fewer tokens, whose results are those of one launch."""
    inputs = {name: x.detach() for name, x in draw(150, 40, 8, 2, 2, 1, torch.float32).items()}
    whole, _ = run_without_gradient(inputs)
    monkeypatch.setattr(triton_backend, "_FUSED_TOKENS", 2)
    parts, launches = run_without_gradient(inputs)
    assert launches == 3
    assert torch.equal(whole.token_logps, parts.token_logps)


def run_without_gradient(inputs):
    """The result, and how often `fused_stats` was launched."""
    launches = []
    kernels.fused_stats.add_pre_run_hook(lambda *_, **__: launches.append(1))
    try:
        with torch.no_grad():
            return run(inputs, 2)[0], len(launches)
    finally:
        kernels.fused_stats.pre_run_hooks.clear()


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_common_offset_of_the_logits(shift):
    inputs = draw(20, 31, 8, 2, None, 2, torch.float32)
    inputs["lm_head_weight"].requires_grad_(False)
    inputs["hidden"].data[:, -1], inputs["z"].data[:, -1], inputs["lm_head_weight"][:, -1] = 1.0, 0.0, shift
    sums, _, gradients = expect(inputs, 2)
    result, got = run(inputs, 2, algorithm="pairwise")
    with torch.no_grad():
        fused, _ = run(inputs, 2)
    assert_close(result.logps, sums)
    assert_close(fused.logps, sums)
    for a, b in zip(got, gradients, strict=True):
        assert_close(a[..., :-1], b[..., :-1])


def problem_of(hidden, lm_head_weight, targets, segment_ids, shard, z=None, with_entropy=False):
    """Two responses per latent, or one pair per response."""
    num_segments = 2 if z is None else 2 * z.size(1)
    segments = segments_in_response_order(segment_ids, num_segments, 2)
    return Problem(
        hidden=hidden,
        lm_head_weight=lm_head_weight,
        z=z,
        targets=targets,
        segments=segments,
        shard=shard,
        chunk_size=1024,
        with_entropy=with_entropy,
    )


def test_a_shard_of_the_vocabulary():
    """Statistics of token ids 5 to 12 of 40 agree with PyTorch's, for targets at both ends of the shard and outside."""
    inputs = draw(9, 40, 6, 2, 2, 1, torch.float32)
    targets = torch.tensor([5, 11, 4, 12, 0, 39, 7, -1, 5], device=DEVICE)
    shard = VocabShard(5, 7, None, None, 0.5)
    weight = inputs["lm_head_weight"].detach()[5:12]
    arguments = (inputs["hidden"].detach(), weight, targets, inputs["segment_ids"], shard)
    problem = problem_of(*arguments, z=inputs["z"].detach(), with_entropy=True)
    chunk = slice(2, 9)
    product = problem.hidden[chunk] @ weight.t()
    logits = product + problem.bias[:, inputs["segment_ids"][chunk] % 2]
    peak, weights = 2 * logits.amax(-1), torch.exp(2 * (logits - logits.amax(-1, keepdim=True)))
    local = targets[chunk] - 5
    mine = (local >= 0) & (local < 7)
    found = 2 * logits[:, torch.arange(7, device=DEVICE), local.clamp(0, 6)]
    expected = torch.stack(
        (peak, weights.sum(-1), found.where(mine, -torch.inf), torch.xlogy(weights, weights).sum(-1))
    )
    backend = choose_backend(problem)
    assert isinstance(backend, TritonBackend)
    for stats in (fused_stats(problem, chunk), backend.stats(problem, product, chunk)):
        torch.testing.assert_close(stats, expected, rtol=1e-5, atol=1e-5)


def test_strides_do_not_matter():
    inputs = draw(12, 30, 5, 2, None, 0, torch.float32)
    strided = {
        name: torch.stack((x.detach(), x.detach()), -1)[..., 0].requires_grad_(x.is_floating_point())
        for name, x in inputs.items()
    }
    for x, y in zip(run(inputs, 2)[1], run(strided, 2)[1], strict=True):
        assert_close(x, y, 1e-6)
    with torch.no_grad():
        assert torch.equal(run(inputs, 2)[0].logps, run(strided, 2)[0].logps)


def test_offsets_beyond_two_to_the_31():
    """Tokens that lie 2^27 elements apart, of which few are touched: the last ones lie beyond 2^31."""
    tokens, hidden_size, apart = 20, 40, 2**27
    room = torch.empty(tokens * apart, dtype=torch.bfloat16, device=DEVICE)
    far = room.as_strided((tokens, hidden_size), (apart, 1))
    near = torch.randn((tokens, hidden_size), generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    weight = torch.randn((tokens, hidden_size), generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE)
    targets = torch.arange(tokens, device=DEVICE)
    segment_ids = (targets >= 9).long()
    every = slice(0, tokens)
    backend = TritonBackend()
    far.copy_(near)

    def problem(hidden, weight, vocab_local):
        shard = VocabShard(0, vocab_local, None, None, 1.0)
        return problem_of(hidden, weight, targets, segment_ids, shard)

    logits_problem = problem(near, weight, hidden_size)
    stats = backend.stats(logits_problem, near, every)
    assert torch.equal(backend.stats(logits_problem, far, every), stats)
    fused = fused_stats(problem(near, weight, tokens), every)
    assert torch.equal(fused_stats(problem(far, weight, tokens), every), fused)
    assert torch.equal(fused_stats(problem(weight, far, tokens), every)[0].max(), fused[0].max())
    scale = torch.ones((1, tokens), device=DEVICE)
    for logits in (far, near):
        backend.logits_gradient_(logits_problem, logits, every, LogpsGradient(scale, stats, None))
    assert torch.equal(far, near)


def test_two_runs_give_the_same_bits():
    def once(algorithm):
        inputs = draw(24, 300, 8, 2, 2, 5, torch.float32)
        result, gradients = run(inputs, 2, algorithm=algorithm, chunk_size=17)
        return (result.logps, result.loss, *gradients)

    for algorithm in ("recompute", "pairwise"):
        assert all(torch.equal(a, b) for a, b in zip(once(algorithm), once(algorithm), strict=True))


def test_without_gradient_no_logits_reach_memory():
    seen = []
    every = (kernels.token_stats, kernels.logits_gradient, kernels.fused_stats)
    try:
        for kernel in every:
            kernel.add_pre_run_hook(lambda *_, name=kernel.__name__, **__: seen.append(name))
        inputs = draw(20, 300, 8, 2, 2, 5, torch.float32)
        with torch.no_grad():
            run(inputs, 2)
        assert seen == ["fused_stats"]
        seen.clear()
        run(inputs, 2, algorithm="pairwise")
        assert seen == ["token_stats", "logits_gradient"]
    finally:
        for kernel in every:
            kernel.pre_run_hooks.clear()


def test_blocks_are_powers_of_two():
    for latents in range(1, 20):
        for plan in (triton_backend.stats_blocks(latents), triton_backend.gradient_blocks(latents)):
            assert all(value & (value - 1) == 0 for value in plan.values())
    assert all(a >= b for a, b in pairwise(triton_backend.stats_blocks(n)["BLOCK_V"] for n in range(1, 20)))
