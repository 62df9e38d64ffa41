"""`gumbel_mix` on Triton.

`test_triton.py` runs this file with Triton's interpreter, and on a GPU with larger shapes.
"""

import os
from dataclasses import fields

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import POSTERIOR_NOISE, PRIOR_NOISE, GumbelMix, gumbel_mix, gumbel_noise
from lpc_kernels.gumbel_mix import triton_kernels as kernels
from lpc_kernels.gumbel_mix.ops import gumbel_mix_op
from lpc_kernels.gumbel_mix.pytorch_backend import gumbel_mix_pytorch
from lpc_kernels.gumbel_mix.result import MixOptions
from lpc_kernels.philox.triton_kernels import gumbel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EXAMPLES, LARGEST = (12, (4, 90, 300)) if INTERPRETED else (150, (70, 1300, 5000))
OUTPUTS = [field.name for field in fields(GumbelMix)]
OPTIONS = {"seed": 2**63 + 5, "tau": 0.7, "prior_mix": 0.3, "straight_through": False}

shapes = st.tuples(st.integers(0, LARGEST[0]), st.integers(1, LARGEST[1]), st.integers(1, LARGEST[2]))
options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**64 - 1),
        "tau": st.floats(0.5, 5),
        "prior_mix": st.sampled_from([0.0, 0.25, 0.7, 1.0]),
        "straight_through": st.booleans(),
    }
)


def draw(batch=3, codes=6, hidden_size=5, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()

    ids = torch.randint(-(2**62), 2**62, (batch,), generator=generator).to(DEVICE)
    return normal(batch, codes), normal(batch, codes), normal(codes, hidden_size), ids


@triton.jit
def noise_kernel(sample_ids, noise, seed: tl.int64, SOURCE: tl.constexpr, K: tl.constexpr):
    code = tl.arange(0, K)
    row = tl.program_id(0)
    tl.store(noise + row * K + code, gumbel(tl.load(sample_ids + row), code, seed, SOURCE))


@pytest.mark.parametrize("seed", [0, 5, 2**40 + 17, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("source", [POSTERIOR_NOISE, PRIOR_NOISE])
def test_noise_has_the_bits_of_pytorch(seed, source):
    many = torch.arange(4 if INTERPRETED else 20000)
    ids = torch.cat((torch.tensor([-1, 2**31, 2**32, 2**62 + 12345, -(2**63)]), many)).to(DEVICE)
    noise = torch.empty((len(ids), 256), device=DEVICE)
    signed = seed - 2**64 if seed >= 2**63 else seed
    noise_kernel[(len(ids),)](ids, noise, signed, source, 256, enable_fp_fusion=False)
    assert torch.equal(noise.cpu(), gumbel_noise(ids.cpu(), 256, seed, source))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(shape=shapes, options=options)
def test_agrees_with_pytorch(shape, options):
    *inputs, ids = draw(*shape)
    mix = gumbel_mix(*inputs, ids, **options)
    expected = gumbel_mix_pytorch(*inputs, ids, MixOptions(**options))
    for name in OUTPUTS:
        got, value = getattr(mix, name), getattr(expected, name)
        # A sum over codes errs with the size of its terms.
        atol = 1e-6 * max(1.0, shape[1] ** 0.5 / 4) if name in ("z", "kl") else 1e-6
        torch.testing.assert_close(got, value, rtol=2e-6, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        if options["straight_through"] and name.startswith("weights"):
            assert torch.equal(got, value)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(shape=shapes, options=options, chosen=st.sets(st.sampled_from(OUTPUTS), min_size=1))
def test_gradients_agree_with_fp64(shape, options, chosen):
    check_gradients(shape, options, chosen)


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_of_each_output_alone(output, straight_through):
    check_gradients((3, 9, 5), {**OPTIONS, "straight_through": straight_through}, {output})


def check_gradients(shape, options, chosen):
    *inputs, ids = draw(*shape)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    loss, exact_loss = 0.0, 0.0
    mix, expected = gumbel_mix(*inputs, ids, **options), gumbel_mix_pytorch(*exact, ids, MixOptions(**options))
    for name in chosen:
        got, value = getattr(mix, name), getattr(expected, name)
        slope = torch.linspace(-1, 1, value.numel(), dtype=torch.float64, device=DEVICE).view(value.shape)
        loss, exact_loss = loss + (slope.float() * got).sum(), exact_loss + (slope * value).sum()
    gradients = torch.autograd.grad(loss, inputs)
    for got, value in zip(gradients, torch.autograd.grad(exact_loss, exact, materialize_grads=True), strict=True):
        torch.testing.assert_close(
            got.double(), value, rtol=1e-5, atol=1e-5 * max(1.0, value.abs().max().item() if value.numel() else 0)
        )


def test_gradcheck():
    *inputs, ids = draw(2, 3, 2, torch.float64)

    def call(*tensors):
        mix = gumbel_mix(*tensors, ids, **OPTIONS)
        return tuple(getattr(mix, name) for name in OUTPUTS)

    assert all(output.dtype == torch.float64 for output in call(*inputs))
    assert torch.autograd.gradcheck(call, tuple(inputs))


@pytest.mark.parametrize("codes", [63, 1024])
def test_bf16_is_fp32_inside(codes):
    *inputs, ids = draw(2, codes, 40, torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    mix, exact = gumbel_mix(*inputs, ids, **OPTIONS), gumbel_mix(*wide, ids, **OPTIONS)
    # A GPU may add in another order where loads are of another width, and so round to the other side; the interpreter
    # does not.
    slack = {"rtol": 0.0, "atol": 0.0} if INTERPRETED else {"rtol": 2e-6, "atol": 2e-6}
    rounded = {"rtol": 0.0, "atol": 0.0} if INTERPRETED else {"rtol": 2**-7, "atol": 1e-5}
    torch.testing.assert_close(mix.z, exact.z.bfloat16(), **rounded)
    for name in OUTPUTS[1:]:
        torch.testing.assert_close(getattr(mix, name), getattr(exact, name), **slack)
    upstream = torch.linspace(-1, 1, 80, device=DEVICE).view(2, 40).bfloat16()
    gradients = torch.autograd.grad(mix.z, inputs, upstream)
    for got, value in zip(gradients, torch.autograd.grad(exact.z, wide, upstream.float()), strict=True):
        torch.testing.assert_close(got, value.bfloat16(), **rounded)


@pytest.mark.parametrize(("prior_mix", "side"), [(0.0, 1), (1.0, 0)])
def test_a_side_that_is_not_mixed_in_cannot_spoil_z(prior_mix, side):
    *inputs, ids = draw()
    inputs[side].data.fill_(torch.nan)
    z = gumbel_mix(*inputs, ids, seed=3, tau=1.0, prior_mix=prior_mix).z
    assert z.isfinite().all()
    gradients = torch.autograd.grad(z.sum(), (inputs[1 - side], inputs[2]))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_two_runs_give_the_same_bits():
    *inputs, ids = draw(5, 100, 33)

    def run():
        mix = gumbel_mix(*inputs, ids, **OPTIONS)
        return *(getattr(mix, name) for name in OUTPUTS), *torch.autograd.grad(mix.z.sum() + mix.kl.sum(), inputs)

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_pair_has_the_same_bits_in_any_batch():
    logits_q, logits_p, codebook, ids = draw(5, 20, 300)
    whole = gumbel_mix(logits_q, logits_p, codebook, ids, **OPTIONS)
    one = gumbel_mix(logits_q[3:4], logits_p[3:4], codebook, ids[3:4], **OPTIONS)
    assert torch.equal(one.z[0], whole.z[3])


def test_strides_do_not_matter():
    *inputs, ids = draw()
    strided = [torch.stack((x.detach(), x.detach()), -1)[..., 0].requires_grad_() for x in inputs]
    upstream = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE).t()
    mix, expected = (
        gumbel_mix(*strided, torch.stack((ids, ids), 1)[:, 0], **OPTIONS),
        gumbel_mix(*inputs, ids, **OPTIONS),
    )
    assert torch.equal(mix.z, expected.z)
    for got, value in zip(
        torch.autograd.grad(mix.z, strided, upstream),
        torch.autograd.grad(expected.z, inputs, upstream.contiguous()),
        strict=True,
    ):
        assert torch.equal(got, value)


def test_one_launch_forward_and_two_backward():
    launches = []
    every = (kernels.forward, kernels.backward_weights, kernels.backward_inputs)
    try:
        for kernel in every:
            kernel.add_pre_run_hook(lambda *_, name=kernel.__name__, **__: launches.append(name))
        *inputs, ids = draw()
        mix = gumbel_mix(*inputs, ids, **OPTIONS)
        assert launches == ["forward"]
        torch.autograd.grad(mix.z.sum() + mix.kl.sum() + mix.entropy_q.sum(), inputs)
        assert launches == ["forward", "backward_weights", "backward_inputs"]
    finally:
        for kernel in every:
            kernel.pre_run_hooks.clear()


@pytest.mark.parametrize("straight_through", [False, True])
def test_operator_keeps_the_rules_of_pytorch(straight_through):
    torch.library.opcheck(gumbel_mix_op, (*draw(), 7, 0.7, 0.3, straight_through))


def test_compiled_graph_has_no_break():
    *inputs, ids = draw()

    def loss(*tensors):
        mix = gumbel_mix(*tensors, ids, **OPTIONS)
        return mix.z.square().sum() + mix.kl.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), loss(*inputs))
    for got, value in zip(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(loss(*inputs), inputs), strict=True
    ):
        torch.testing.assert_close(got, value)
