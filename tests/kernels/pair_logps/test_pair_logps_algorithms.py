"""Algorithms agree with plain autograd on all logits, and each does what makes it worth having."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import pair_logps
from lpc_kernels.pair_logps.algorithms import Circumstances, choose_algorithm
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import logsigmoid

from .pair_logps_cases import draw, reference
from .test_pair_logps import Watch, assert_close, double


def preference(logps, pairs):
    """A loss [B] with a different coefficient for each latent and pair, like those of a reference and of lengths."""
    latents = torch.arange(1, 1 + logps.size(0), dtype=logps.dtype)[:, None]
    margins = 0.3 * (logps[:, 0] - logps[:, 1]) - 0.1 * pairs
    return (-latents * logsigmoid(margins) + 0.05 * logps[:, 0].square()).sum(0)


def names_of(inputs):
    return [
        name for name in ("hidden", "lm_head_weight", "z") if inputs[name] is not None and inputs[name].requires_grad
    ]


def gradients(loss, inputs):
    return torch.autograd.grad(loss, [inputs[name] for name in names_of(inputs)])


def run(inputs, pairs, factor=1.0, **options):
    """The result, and the gradients of `factor` times the loss."""
    result = pair_logps(
        inputs["hidden"],
        inputs["lm_head_weight"],
        inputs["targets"],
        inputs["segment_ids"],
        2 * pairs,
        **{"z": inputs["z"], "pair_loss": preference, **options},
    )
    return result, gradients(factor * result.loss, inputs)


def expect(inputs, pairs, factor=1.0, **options):
    exact = {name: x if x is None or not x.is_floating_point() else x.detach().double() for name, x in inputs.items()}
    for name in names_of(inputs):
        exact[name].requires_grad_()
    arguments = (exact["targets"], exact["segment_ids"], 2 * pairs, exact["z"])
    sums, token_logps = reference(exact["hidden"], exact["lm_head_weight"], *arguments, **options)
    loss = preference(sums.view(-1, 2, pairs), torch.arange(pairs)).sum()
    return sums, token_logps, loss, gradients(factor * loss, exact)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    algorithm=st.sampled_from(["recompute", "pairwise", "frozen", "auto"]),
    tokens=st.integers(0, 23),
    vocab=st.integers(1, 41),
    padding=st.integers(0, 9),
    hidden_size=st.integers(1, 17),
    pairs=st.integers(1, 4),
    latents=st.sampled_from([None, 1, 2, 3]),
    with_z=st.booleans(),
    chunk_size=st.sampled_from([1, 3, 8, 1024]),
    softcap=st.sampled_from([None, 2.0]),
    temperature=st.sampled_from([1.0, 0.7]),
    factor=st.sampled_from([1.0, -2.5]),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_plain_autograd(
    algorithm,
    tokens,
    vocab,
    padding,
    hidden_size,
    pairs,
    latents,
    with_z,
    chunk_size,
    softcap,
    temperature,
    factor,
    seed,
):
    inputs = draw(tokens, vocab + padding, hidden_size, pairs, latents, seed, torch.float32)
    inputs["targets"] %= vocab
    if algorithm == "frozen":
        inputs["lm_head_weight"].requires_grad_(False)
    if not with_z:
        inputs["z"] = None
    options = {"vocab_size": vocab, "temperature": temperature}
    result, got = run(
        inputs, pairs, factor, algorithm=algorithm, chunk_size=chunk_size, logit_softcap=softcap, **options
    )
    sums, token_logps, loss, expected = expect(inputs, pairs, factor, softcap=softcap, **options)
    assert_close(result.logps, sums)
    assert_close(result.token_logps, token_logps)
    assert_close(result.loss, loss)
    for name, a, b in zip(names_of(inputs), got, expected, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b)
        if name == "lm_head_weight":
            assert not a[vocab:].any()


@pytest.mark.parametrize("algorithm", ["pairwise", "frozen"])
@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_common_offset_of_the_logits(algorithm, shift):
    inputs = draw(20, 31, 8, 2, None, 2, torch.float32)
    inputs["lm_head_weight"].requires_grad_(False)
    inputs["hidden"].data[:, -1], inputs["z"].data[:, -1], inputs["lm_head_weight"][:, -1] = 1.0, 0.0, shift
    result, got = run(inputs, 2, algorithm=algorithm, chunk_size=8)
    sums, _, _, expected = expect(inputs, 2)
    assert_close(result.logps, sums)
    for a, b in zip(got, expected, strict=True):
        assert_close(a[..., :-1], b[..., :-1])


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_bf16_is_no_worse_than_plain_bf16(algorithm):
    inputs = draw(64, 97, 32, 4, None, 4, torch.bfloat16)
    inputs["lm_head_weight"].data.mul_(0.2)
    inputs["lm_head_weight"].requires_grad_(algorithm != "frozen")
    sums, _, _, exact = expect(inputs, 4)
    plain_sums, _ = reference(
        inputs["hidden"], inputs["lm_head_weight"], inputs["targets"], inputs["segment_ids"], 8, inputs["z"]
    )
    plain = gradients(preference(plain_sums.view(1, 2, 4), torch.arange(4)).sum(), inputs)
    result, got = run(inputs, 4, algorithm=algorithm, chunk_size=20)
    for ours, theirs, truth in zip((result.logps, *got), (plain_sums, *plain), (sums, *exact), strict=True):
        assert (ours.double() - truth).norm() <= (theirs.double() - truth).norm()
    assert {x.dtype for x in got} == {torch.bfloat16}


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_two_runs_give_the_same_bits(algorithm):
    def once():
        inputs = draw(60, 37, 8, 4, 2, 5, torch.float32)
        inputs["lm_head_weight"].requires_grad_(algorithm != "frozen")
        result, got = run(inputs, 4, algorithm=algorithm, chunk_size=17)
        return (result.logps, result.loss, *got)

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize(
    ("algorithm", "latents", "trained", "forward", "backward"),
    [
        ("recompute", 2, True, 1, 3),
        ("pairwise", 1, True, 3, 0),
        ("pairwise", 2, True, 3, 0),
        ("pairwise", 2, False, 2, 0),
        ("frozen", 1, False, 2, 0),
        ("frozen", 2, False, 3, 0),
        ("auto", 2, True, 3, 0),
        ("auto", 2, False, 2, 0),
    ],
)
def test_large_products(algorithm, latents, trained, forward, backward):
    """Those of N V H multiplications; the smaller ones are those of the latents."""
    tokens, vocab, hidden_size, pairs = 200, 90, 8, 2
    inputs = draw(tokens, vocab, hidden_size, pairs, latents, 0, torch.float32)
    inputs["lm_head_weight"].requires_grad_(trained)
    with Watch() as watch:
        result = pair_logps(
            *(inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")),
            2 * pairs,
            z=inputs["z"],
            pair_loss=preference,
            algorithm=algorithm,
        )
    with Watch() as after:
        gradients(result.loss, inputs)
    for seen, expected in ((watch, forward), (after, backward)):
        assert sum(prod(product) == tokens * vocab * hidden_size for product in seen.products) == expected
    if algorithm == "pairwise":
        assert watch.largest == tokens * vocab


def test_pairwise_makes_no_gradient_of_hidden_that_nobody_wants():
    inputs = draw(30, 19, 8, 3, None, 6, torch.float32)
    hidden = inputs["hidden"].detach()
    arguments = (inputs["lm_head_weight"], inputs["targets"], inputs["segment_ids"], 6)
    with Watch() as watch:
        result = pair_logps(hidden, *arguments, z=inputs["z"], pair_loss=preference, algorithm="pairwise")
    assert (30, 8, 19) not in watch.products
    expected = expect(inputs, 3)[3]
    for a, b in zip(
        torch.autograd.grad(result.loss, (inputs["lm_head_weight"], inputs["z"])), expected[1:], strict=True
    ):
        assert_close(a, b)


@pytest.mark.parametrize(("algorithm", "with_loss"), [("frozen", False), ("auto", False)])
def test_frozen_allows_a_loss_known_afterwards(algorithm, with_loss):
    inputs = draw(30, 19, 8, 3, None, 6, torch.float32)
    inputs["lm_head_weight"].requires_grad_(False)
    slope = torch.linspace(-1, 2, 30)

    def by(algorithm):
        result = pair_logps(
            *(inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")),
            6,
            z=inputs["z"],
            algorithm=algorithm,
            chunk_size=8,
        )
        assert result.loss is None
        return gradients((slope * result.token_logps).sum() + result.logps.square().sum(), inputs)

    for a, b in zip(by(algorithm), by("recompute"), strict=True):
        assert_close(a, b, 1e-6)


def test_auto_recomputes_where_a_pair_exceeds_the_chunk():
    inputs = draw(40, 11, 4, 1, None, 0, torch.float32)
    assert run(inputs, 1, algorithm="auto", chunk_size=39)[0].logps.requires_grad
    assert not run(inputs, 1, algorithm="auto", chunk_size=40)[0].logps.requires_grad
    result, got = run(inputs, 1, algorithm="pairwise", chunk_size=5)
    assert not result.logps.requires_grad
    for a, b in zip(got, expect(inputs, 1)[3], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen", "auto"])
def test_without_gradient_every_algorithm_is_scoring(algorithm):
    inputs = draw(30, 19, 8, 3, 2, 6, torch.float32)
    with torch.no_grad(), Watch() as watch:
        result = pair_logps(
            *(inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")),
            6,
            z=inputs["z"],
            pair_loss=preference,
            algorithm=algorithm,
        )
    assert not result.loss.requires_grad
    assert_close(result.loss, expect(inputs, 3)[2])
    assert sum(product == (30, 19, 8) for product in watch.products) == 1
    assert (30, 8, 19) not in watch.products


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_joins_a_buffer(algorithm, dtype):
    inputs = draw(40, 21, 8, 3, None, 6, dtype)
    options = {"algorithm": algorithm, "chunk_size": 16, "vocab_size": 19}
    inputs["targets"] %= 19
    buffer = torch.full(inputs["lm_head_weight"].shape, 2.0)
    got = run(inputs, 3, main_grad=buffer, **options)[1]
    expected = run(inputs, 3, **options)[1]
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[2], expected[2])
    assert got[1].dtype == dtype
    assert not got[1].any()
    assert_close((buffer - 2.0).to(dtype), expected[1], 1e-6 if dtype == torch.float32 else 1e-2)
    assert (buffer[19:] == 2.0).all()


def test_a_buffer_cannot_be_scaled():
    inputs = draw(10, 21, 8, 2, None, 6, torch.float32)
    with pytest.raises(RuntimeError, match="must enter the final loss with factor 1"):
        run(inputs, 2, factor=0.5, algorithm="pairwise", main_grad=torch.zeros(21, 8))


def test_pairwise_goes_backward_once():
    inputs = draw(10, 21, 8, 2, None, 6, torch.float32)
    result = pair_logps(
        *(inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")),
        4,
        pair_loss=preference,
        algorithm="pairwise",
    )
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gone after one backward"):
        result.loss.backward()


def test_compiled_code_may_call_it():
    inputs = draw(20, 21, 8, 2, None, 6, torch.float32)

    def loss(hidden, z):
        rest = (inputs["lm_head_weight"], inputs["targets"], inputs["segment_ids"], 4)
        return 2 * pair_logps(hidden.sin(), *rest, z=z.cos(), pair_loss=preference).loss.square()

    arguments = (inputs["hidden"], inputs["z"])
    eager, compiled = loss(*arguments), torch.compile(loss, backend="aot_eager")(*arguments)
    assert torch.equal(eager, compiled)
    for a, b in zip(*(torch.autograd.grad(value, arguments) for value in (eager, compiled)), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_a_second_derivative_is_refused(algorithm):
    inputs = draw(10, 21, 8, 2, None, 6, torch.float32)
    inputs["lm_head_weight"].requires_grad_(False)
    given = [inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids")]
    loss = pair_logps(*given, 4, pair_loss=preference, algorithm=algorithm).loss
    (first,) = torch.autograd.grad(loss.square(), inputs["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("latents", [None, 2])
@pytest.mark.parametrize(
    "options", [{}, {"algorithm": "recompute", "pair_loss": preference}, {"algorithm": "frozen"}, {"main_grad": True}]
)
def test_compiled_graph_has_no_break(options, latents):
    inputs = draw(20, 21, 8, 2, latents, 6, torch.float32)
    buffers = [torch.zeros(21, 8), torch.zeros(21, 8)]

    def loss(hidden, weight, z, buffer):
        taken = {**options, "main_grad": buffer} if "main_grad" in options else options
        frozen = weight.detach() if options.get("algorithm") == "frozen" else weight.sin()
        rest = (inputs["targets"], inputs["segment_ids"], 4)
        result = pair_logps(
            hidden.sin(), frozen, *rest, z=z if z is None else z.cos(), chunk_size=9, with_entropy=True, **taken
        )
        return (result.logps.square().sum() if result.loss is None else result.loss.square()) + result.entropy.sum()

    arguments = [inputs["hidden"], inputs["lm_head_weight"], inputs["z"]]
    asked = [
        x
        for x in arguments
        if x is not None and (x is not inputs["lm_head_weight"] or options.get("algorithm") != "frozen")
    ]
    values = [function(*arguments, buffer) for function, buffer in zip((loss, compiled(loss)), buffers, strict=True)]
    assert_close(values[1], values[0], 1e-6)
    for eager, got in zip(*(torch.autograd.grad(value, asked) for value in values), strict=True):
        assert_close(got, eager, 1e-6)
    assert torch.equal(*buffers)
    assert buffers[0].any() == ("main_grad" in options)


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_one_graph_is_used_for_any_number_of_loss_tokens():
    def loss(hidden, weight, targets, segments):
        return pair_logps(hidden, weight, targets, segments, 4).logps.square().sum()

    graphs = CompileCounterWithBackend("aot_eager")
    whole = torch.compile(loss, fullgraph=True, backend=graphs)
    for tokens in (20, 26, 31, 40):
        arguments = [
            draw(tokens, 21, 8, 2, None, tokens, torch.float32)[name]
            for name in ("hidden", "lm_head_weight", "targets", "segment_ids")
        ]
        assert_close(whole(*arguments), loss(*arguments), 1e-6)
    assert graphs.frame_count == 2  # The first one takes 20 for a constant.


def test_log_sum_exp_and_entropy():
    inputs = draw(20, 13, 8, 2, 2, 6, torch.float32)
    inputs["targets"] %= 11
    exact = double(inputs)
    logits = (exact["hidden"] + exact["z"][:, exact["segment_ids"] % 2]) @ exact["lm_head_weight"][:11].T
    for algorithm in ("recompute", "pairwise"):
        result, _ = run(inputs, 2, algorithm=algorithm, chunk_size=9, with_entropy=True, vocab_size=11)
        assert_close(result.log_sum_exp, logits.logsumexp(-1))
        assert_close(result.entropy, torch.distributions.Categorical(logits=logits).entropy())
        assert not result.entropy.requires_grad
    assert run(inputs, 2)[0].entropy is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "fast"}, "algorithm must be auto, recompute, pairwise or frozen, got 'fast'"),
        ({"algorithm": "pairwise"}, "algorithm pairwise needs pair_loss"),
        ({"algorithm": "frozen"}, "algorithm frozen makes no gradient of lm_head_weight, which requires one"),
        ({"pair_loss": preference, "num_segments": 5}, "pair_loss needs two responses per pair, but num_segments is 5"),
        ({"pair_loss": preference, "z": torch.zeros(1, 4)}, "num_segments is 4 and z has 1 pairs"),
        ({"main_grad": torch.zeros(11, 5)}, r"main_grad must be \[11, 4\] torch.float32, got \[11, 5\]"),
        ({"main_grad": torch.zeros(11, 4).half()}, "got .* torch.float16"),
        (
            {"pair_loss": lambda logps, pairs: preference(logps, pairs).sum(), "algorithm": "pairwise"},
            r"a loss for each of 2 pairs, got \[\]",
        ),
        (
            {"pair_loss": lambda logps, pairs: preference(logps, pairs).sum(), "algorithm": "recompute"},
            r"for each of 2 pairs, got \[\]",
        ),
    ],
)
def test_errors(options, message):
    inputs = draw(6, 11, 4, 2, None, 0, torch.float32)
    inputs["z"] = None
    with pytest.raises(ValueError, match=message):
        pair_logps(**{**inputs, "num_segments": 4, **options})


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_pair_losses_are_those_of_the_loss(algorithm):
    inputs = draw(30, 19, 8, 3, 2, 6, torch.float32)
    inputs["lm_head_weight"].requires_grad_(algorithm != "frozen")
    result, _ = run(inputs, 3, algorithm=algorithm, chunk_size=12)
    expected = preference(result.logps.detach().view(2, 2, 3), torch.arange(3))
    assert_close(result.pair_losses, expected, 1e-6)
    assert not result.pair_losses.requires_grad
    assert_close(result.pair_losses.sum(), result.loss.detach())


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, "pairwise"),
        ({"pairs_fit": False}, "recompute"),
        ({"pairs_fit": False, "lm_head_trained": False}, "recompute"),
        ({"pairs_fit": False, "lm_head_trained": False, "num_latents": 1}, "frozen"),
        (
            {"pairs_fit": False, "lm_head_trained": False, "num_latents": 1, "hidden_trained": False},
            "recompute",
        ),
        ({"wants_gradient": False}, "scoring"),
    ],
)
def test_auto_chooses_the_cheapest(change, chosen):
    circumstances = {"wants_gradient": True, "lm_head_trained": True, "num_latents": 2, "pairs_fit": True}
    assert choose_algorithm("auto", Circumstances(**{**circumstances, **change})) == chosen
