import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import pair_logps
from lpc_kernels.pair_logps import chunk_logits
from torch.utils._python_dispatch import TorchDispatchMode

from .pair_logps_cases import draw, reference


def call(inputs, **options):
    options = {"z": inputs["z"], "algorithm": "recompute", **options}
    result = pair_logps(
        inputs["hidden"],
        inputs["lm_head_weight"],
        inputs["targets"],
        inputs["segment_ids"],
        2 * inputs["z"].size(-2),
        **options,
    )
    return result.logps, result.token_logps


def gradients(outputs, inputs, names=("hidden", "lm_head_weight", "z")):
    """Gradients of a loss in which every sum and every token log-prob has a different coefficient."""
    loss = 0
    for output in outputs:
        loss = (
            loss
            + (
                torch.linspace(-1, 1.5, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
                * output
            ).sum()
        )
    return torch.autograd.grad(loss, [inputs[name] for name in names])


def double(inputs):
    return {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}


def assert_close(got, expected, tolerance=1e-5):
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance * max(scale, 1.0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
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
    seed=st.integers(0, 2**16),
)
def test_agrees_with_the_definition(
    tokens, vocab, padding, hidden_size, pairs, latents, with_z, chunk_size, softcap, temperature, seed
):
    inputs = draw(tokens, vocab + padding, hidden_size, pairs, latents, seed, torch.float32)
    inputs["targets"] %= vocab
    options = {"chunk_size": chunk_size, "temperature": temperature}
    z = {} if with_z else {"z": None}
    names = ("hidden", "lm_head_weight", "z") if with_z else ("hidden", "lm_head_weight")
    got = call(inputs, vocab_size=vocab, logit_softcap=softcap, **options, **z)
    exact = double(inputs)
    expected = reference(
        exact["hidden"],
        exact["lm_head_weight"],
        exact["targets"],
        exact["segment_ids"],
        2 * pairs,
        exact["z"] if with_z else None,
        vocab,
        softcap,
        temperature,
    )
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert_close(a, b)
    for name, a, b in zip(names, gradients(got, inputs, names), gradients(expected, exact, names), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b)
        if name == "lm_head_weight":
            assert not a[vocab:].any()


@pytest.mark.parametrize("latents", [None, 2])
@pytest.mark.parametrize("options", [{}, {"logit_softcap": 1.5, "temperature": 0.6}])
def test_gradcheck(latents, options):
    inputs = draw(5, 7, 3, 2, latents, 3, torch.float64)
    inputs["targets"] %= 6

    def sums_and_token_logps(hidden, weight, z):
        return call(
            {**inputs, "hidden": hidden, "lm_head_weight": weight, "z": z}, vocab_size=6, chunk_size=2, **options
        )

    assert sums_and_token_logps(inputs["hidden"], inputs["lm_head_weight"], inputs["z"])[0].dtype == torch.float64
    assert torch.autograd.gradcheck(sums_and_token_logps, (inputs["hidden"], inputs["lm_head_weight"], inputs["z"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_latent_and_a_zero_latent_are_the_same_bits(dtype):
    inputs = draw(50, 101, 16, 3, 2, 0, dtype)
    inputs["z"].data[1] = 0
    for options in ({}, {"logit_softcap": 3.0, "temperature": 0.5}):
        plain = call(inputs, z=None, chunk_size=16, **options)
        mixed = call(inputs, chunk_size=16, **options)
        for a, b in zip(plain, mixed, strict=True):
            assert torch.equal(a, b[1])
            assert not torch.equal(a, b[0])


def test_several_latents_equal_several_calls():
    inputs = draw(40, 29, 8, 3, 2, 1, torch.float32)
    together = call(inputs, chunk_size=16)
    separate = [call(inputs, z=inputs["z"][n], chunk_size=16) for n in range(2)]
    stacked = [torch.stack(outputs) for outputs in zip(*separate, strict=True)]
    for a, b in zip(together, stacked, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(gradients(together, inputs), gradients(stacked, inputs), strict=True):
        assert_close(a, b, 1e-6)


def test_two_runs_give_the_same_bits():
    first, second = (draw(60, 37, 8, 4, 2, 5, torch.float32) for _ in range(2))
    a, b = call(first, chunk_size=7), call(second, chunk_size=7)
    for x, y in zip((*a, *gradients(a, first)), (*b, *gradients(b, second)), strict=True):
        assert torch.equal(x, y)


def test_chunks_change_nothing_but_rounding():
    inputs = draw(60, 37, 8, 4, 2, 5, torch.float32)
    a, b = call(inputs, chunk_size=7), call(inputs, chunk_size=1000)
    for x, y in zip((*a, *gradients(a, inputs)), (*b, *gradients(b, inputs)), strict=True):
        assert_close(x, y, 1e-6)


def test_a_larger_vocabulary_than_one_product_takes_on_a_cpu():
    inputs = draw(23, 2 * chunk_logits.CPU_PIECE + 5, 8, 2, 2, 4, torch.float32)
    got = call(inputs, chunk_size=9)
    exact = double(inputs)
    expected = reference(
        exact["hidden"], exact["lm_head_weight"], exact["targets"], exact["segment_ids"], 4, exact["z"]
    )
    for a, b in zip((*got, *gradients(got, inputs)), (*expected, *gradients(expected, exact)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_common_offset_of_the_logits(shift):
    """A last hidden number of 1 and a last column of `shift` move all logits together: log-probs must not feel it."""
    inputs = draw(20, 31, 8, 2, None, 2, torch.float32)
    inputs["hidden"].data[:, -1], inputs["z"].data[:, -1], inputs["lm_head_weight"].data[:, -1] = 1.0, 0.0, 0.0
    plain = call(inputs)
    plain_gradients = gradients(plain, inputs, ("hidden", "z"))
    inputs["lm_head_weight"].data[:, -1] = shift
    shifted = call(inputs)
    for a, b in zip(shifted, plain, strict=True):
        assert_close(a, b)
    for a, b in zip(gradients(shifted, inputs, ("hidden", "z")), plain_gradients, strict=True):
        assert_close(a[..., :-1], b[..., :-1])


def test_a_sure_target_keeps_its_small_gradient_in_bf16():
    """p = 1 - 2e-3 rounds to 1 in bf16: p - 1 must be taken before."""
    hidden = torch.tensor([[6.25]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    zero = torch.zeros(1, dtype=torch.int64)
    pair_logps(hidden, weight, zero, zero, 1).logps.sum().backward()
    expected = 1 - torch.sigmoid(torch.tensor(6.25))
    assert hidden.grad.item() == pytest.approx(expected.item(), rel=0.01)


def test_bf16_is_no_worse_than_plain_bf16():
    inputs = draw(64, 97, 32, 4, None, 4, torch.bfloat16)
    inputs["lm_head_weight"].data.mul_(0.2)
    exact = double(inputs)
    arguments = (inputs["targets"], inputs["segment_ids"], 8)
    expected = reference(exact["hidden"], exact["lm_head_weight"], *arguments, exact["z"])
    plain = reference(inputs["hidden"], inputs["lm_head_weight"], *arguments, inputs["z"])
    got = call(inputs, chunk_size=16)
    ours = (*got, *gradients(got, inputs))
    theirs = (*plain, *gradients(plain, inputs))
    for a, b, c in zip(ours, theirs, (*expected, *gradients(expected, exact)), strict=True):
        assert (a.double() - c).norm() <= (b.double() - c).norm()
    assert [x.dtype for x in ours] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16]


def test_weight_gradient_is_accumulated_in_fp32():
    """512 chunks that each add 2^-10 to a sum of 1: bf16 addition would lose them all."""
    tokens = 513
    hidden = torch.full((tokens, 1), 2.0**-9, dtype=torch.bfloat16)
    hidden[0] = 2.0
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    zeros = torch.zeros(tokens, dtype=torch.int64)
    pair_logps(hidden, weight, zeros, zeros, 1, chunk_size=1).logps.sum().backward()
    assert weight.grad.flatten().tolist() == [1.5, -1.5]


@pytest.mark.parametrize("with_z", [False, True])
def test_no_loss_tokens(with_z):
    inputs = draw(0, 11, 4, 2, 2, 0, torch.float32)
    names = ("hidden", "lm_head_weight", "z") if with_z else ("hidden", "lm_head_weight")
    sums, token_logps = call(inputs, **({} if with_z else {"z": None}))
    assert sums.shape == ((2, 4) if with_z else (4,))
    assert token_logps.numel() == 0
    assert not sums.any()
    for gradient, name in zip(gradients((sums, token_logps), inputs, names), names, strict=True):
        assert gradient.shape == inputs[name].shape
        assert not gradient.any()


def test_empty_responses_sum_to_zero():
    inputs = draw(6, 11, 4, 3, None, 0, torch.float32)
    inputs["segment_ids"] = torch.tensor([1, 1, 1, 4, 4, 4])
    sums, token_logps = call(inputs, chunk_size=4)
    assert sums[[0, 2, 3, 5]].tolist() == [0, 0, 0, 0]
    assert_close(sums[[1, 4]], torch.stack((token_logps[:3].sum(), token_logps[3:].sum())), 1e-6)
    assert not gradients((sums,), inputs, ("z",))[0][[0, 2]].any()


def test_strided_inputs_equal_contiguous_ones():
    inputs = draw(12, 11, 4, 2, None, 0, torch.float32)
    strided = {
        name: torch.stack((x.detach(), x.detach()), -1)[..., 0].requires_grad_(x.is_floating_point())
        for name, x in inputs.items()
    }
    assert not any(x.is_contiguous() for x in strided.values())
    a, b = call(inputs, chunk_size=5), call(strided, chunk_size=5)
    for x, y in zip((*a, *gradients(a, inputs)), (*b, *gradients(b, strided)), strict=True):
        assert_close(x, y, 1e-6)


def test_a_target_outside_the_vocabulary_has_no_probability():
    inputs = draw(4, 11, 4, 1, None, 0, torch.float32)
    inputs["targets"] = torch.tensor([8, 9, -100, 11])
    _, token_logps = call(inputs, vocab_size=9)
    assert token_logps[0].isfinite()
    assert token_logps[1:].tolist() == [-torch.inf] * 3


class Watch(TorchDispatchMode):
    """Records the largest result and the matrix products of all operations."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lpc_kernels":
            with self:  # Otherwise the operations inside an operator would not be seen.
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
            if "mm" in func.__name__ or "matmul" in func.__name__:
                operands = [x for x in args if isinstance(x, torch.Tensor)][-2:]
                self.products.append((*result.shape, operands[0].size(-1)))
        return result


@pytest.mark.parametrize("latents", [None, 2])
def test_never_all_logits_at_once(latents):
    inputs = draw(200, 90, 8, 2, latents, 0, torch.float32)
    with Watch() as watch:
        gradients(call(inputs, chunk_size=20), inputs)
    assert 20 * 90 <= watch.largest < 200 * 90 / 8


@pytest.mark.parametrize("wanted", [("hidden",), ("lm_head_weight",), ("z",), ("hidden", "z"), ("lm_head_weight", "z")])
def test_only_wanted_gradients_are_made(wanted):
    tokens, vocab, hidden_size, pairs = 40, 30, 8, 3
    inputs = draw(tokens, vocab, hidden_size, pairs, None, 0, torch.float32)
    everything = dict(zip(("hidden", "lm_head_weight", "z"), gradients(call(inputs), inputs), strict=True))
    for name in ("hidden", "lm_head_weight", "z"):
        inputs[name].requires_grad_(name in wanted)
    outputs = call(inputs)
    with Watch() as watch:
        got = gradients(outputs, inputs, wanted)
    for name, gradient in zip(wanted, got, strict=True):
        assert torch.equal(gradient, everything[name])
    assert ((tokens, hidden_size, vocab) in watch.products) == ("hidden" in wanted)
    assert ((vocab, hidden_size, tokens) in watch.products) == ("lm_head_weight" in wanted)
    assert ((pairs, hidden_size, vocab) in watch.products) == ("z" in wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 2, 4)}, r"hidden must be \[N, H\], got \[3, 2, 4\]"),
        ({"lm_head_weight": torch.zeros(11, 5)}, r"lm_head_weight must be \[V_local, 4\]"),
        (
            {"lm_head_weight": torch.zeros(11, 4, dtype=torch.bfloat16)},
            "one dtype, got torch.float32 and torch.bfloat16",
        ),
        ({"hidden": torch.zeros(6, 4).long(), "lm_head_weight": torch.zeros(11, 4).long()}, "must be floating point"),
        ({"targets": torch.zeros(5).long()}, r"targets must be \[6\] int64"),
        ({"segment_ids": torch.zeros(6)}, r"segment_ids must be \[6\] int64"),
        ({"num_segments": 0}, "num_segments must be at least 1"),
        ({"z": torch.zeros(2, 5)}, r"z must be \[P, 4\] or \[L, P, 4\], got \[2, 5\]"),
        ({"z": torch.zeros(3, 4)}, r"num_segments \(4\) must be a multiple of z's 3 pairs"),
        ({"vocab_start": -1}, "vocab_start must not be negative"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"vocab_start": 20, "vocab_size": 20}, r"leaves no token id of the 11 from vocab_start \(20\) on"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"logit_softcap": 0.0}, "logit_softcap must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_errors(change, message):
    arguments = {**draw(6, 11, 4, 2, None, 0, torch.float32), "num_segments": 4}
    with pytest.raises(ValueError, match=message):
        pair_logps(**{**arguments, **change})


@pytest.mark.parametrize("segment_ids", [[0, 1, 0], [-1, 0, 1], [0, 1, 4]])
def test_segments_out_of_order_or_range(segment_ids):
    inputs = {**draw(3, 11, 4, 2, None, 0, torch.float32), "segment_ids": torch.tensor(segment_ids)}
    with pytest.raises(RuntimeError, match=r"segment_ids must be ascending and in \[0, num_segments\)"):
        call(inputs)
