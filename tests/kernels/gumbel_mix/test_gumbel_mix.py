from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpc_kernels import gumbel_mix
from lpc_kernels.gumbel_mix.reference import gumbel_mix_reference
from lpc_kernels.gumbel_mix.result import MixOptions

SEED = 1234


def draw(batch=5, codes=6, hidden_size=4, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    ids = torch.randint(0, 2**62, (batch,), generator=generator)
    return normal(batch, codes), normal(batch, codes), normal(codes, hidden_size), ids


def reference(logits_q, logits_p, codebook, ids, tau, prior_mix):
    """The package's definition: outputs by name."""
    options = MixOptions(seed=SEED, tau=tau, prior_mix=prior_mix, straight_through=False)
    mix = gumbel_mix_reference(logits_q, logits_p, codebook, ids, options)
    return {field.name: getattr(mix, field.name) for field in fields(mix)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 7),
    codes=st.integers(1, 70),
    hidden_size=st.integers(1, 19),
    tau=st.floats(0.2, 5),
    prior_mix=st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    shift=st.sampled_from([0.0, -100.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_the_definition(batch, codes, hidden_size, tau, prior_mix, shift, seed):
    *inputs, ids = draw(batch, codes, hidden_size, torch.float32, seed=seed)
    inputs[0].data.add_(shift)
    mix = gumbel_mix(*inputs, ids, seed=SEED, tau=tau, prior_mix=prior_mix)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = reference(*exact, ids, tau, prior_mix)
    assert expected.keys() == {field.name for field in fields(mix)}
    loss, expected_loss = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for name, value in expected.items():
        got = getattr(mix, name)
        assert got.dtype == torch.float32
        # Shifted logits carry fewer digits after the point, and a small tau magnifies that.
        torch.testing.assert_close(
            got, value.float(), rtol=1e-5, atol=2e-4 if shift else 1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
        slope = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view(value.shape)
        loss, expected_loss = loss + (slope.float() * got).sum(), expected_loss + (slope * value).sum()
    gradients = torch.autograd.grad(loss, inputs)
    for got, value in zip(gradients, torch.autograd.grad(expected_loss, exact), strict=True):
        torch.testing.assert_close(got, value.float(), rtol=1e-4, atol=1e-3 if shift else 2e-5)


@pytest.mark.parametrize("prior_mix", [0.0, 0.3, 1.0])
def test_gradcheck(prior_mix):
    *inputs, ids = draw(3, 4, 2)

    def call(*tensors):
        mix = gumbel_mix(*tensors, ids, seed=SEED, tau=0.7, prior_mix=prior_mix)
        return tuple(getattr(mix, field.name) for field in fields(mix))

    assert all(output.dtype == torch.float64 for output in call(*inputs))
    assert torch.autograd.gradcheck(call, tuple(inputs))


def test_pair_is_the_same_in_any_batch():
    logits_q, logits_p, codebook, ids = draw()
    options = {"seed": SEED, "tau": 0.5, "prior_mix": 0.5}
    whole = gumbel_mix(logits_q, logits_p, codebook, ids, **options)
    for row in range(len(ids)):
        one = gumbel_mix(logits_q[row : row + 1], logits_p[row : row + 1], codebook, ids[row : row + 1], **options)
        torch.testing.assert_close(one.z[0], whole.z[row])
    assert torch.equal(whole.z, gumbel_mix(logits_q, logits_p, codebook, ids, **options).z)


def test_noise_draws_codes_with_their_probabilities():
    """The largest of the noisy logits is a sample of the softmax (the Gumbel-max trick)."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20000, 4)
    mix = gumbel_mix(logits, logits, torch.eye(4), torch.arange(20000), seed=SEED, tau=1.0, prior_mix=0.0)
    for weights in (mix.weights_q, mix.weights_p):
        share = torch.bincount(weights.argmax(-1), minlength=4) / 20000
        torch.testing.assert_close(share, mix.q[0], atol=0.015, rtol=0)


def test_straight_through_is_hard_forward_and_soft_backward():
    logits_q, logits_p, codebook, ids = draw(dtype=torch.float32)
    options = {"seed": SEED, "tau": 0.8, "prior_mix": 0.0}
    hard = gumbel_mix(logits_q, logits_p, codebook, ids, straight_through=True, **options)
    soft = gumbel_mix(logits_q, logits_p, codebook, ids, **options)
    assert torch.equal(hard.weights_q.sort(-1).values[:, -1], torch.ones(5))
    assert torch.equal(hard.weights_q.sum(-1), torch.ones(5))
    assert torch.equal(hard.weights_q.argmax(-1), soft.weights_q.argmax(-1))
    assert torch.equal(hard.z, codebook[soft.weights_q.argmax(-1)])
    upstream = torch.linspace(-1, 1, 20).view(5, 4)
    d_logits, d_codebook = torch.autograd.grad(hard.z, (logits_q, codebook), upstream)
    torch.testing.assert_close(d_logits, torch.autograd.grad(soft.z, logits_q, upstream)[0], rtol=1e-5, atol=1e-7)
    # The codebook's gradient is that of the code really used.
    torch.testing.assert_close(d_codebook, hard.weights_q.detach().T @ upstream)


@pytest.mark.parametrize(("prior_mix", "side"), [(0.0, 1), (1.0, 0)])
def test_a_side_that_is_not_mixed_in_cannot_spoil_z(prior_mix, side):
    *inputs, ids = draw(dtype=torch.float32)
    inputs[side].data.fill_(torch.nan)
    mix = gumbel_mix(*inputs, ids, seed=SEED, tau=1.0, prior_mix=prior_mix)
    assert mix.z.isfinite().all()
    other, codes = torch.autograd.grad(mix.z.sum(), (inputs[1 - side], inputs[2]))
    assert other.isfinite().all()
    assert codes.isfinite().all()


def test_equal_sides_have_no_divergence_and_far_sides_a_finite_one():
    logits = torch.tensor([[0.0, 1.0, -2.0], [300.0, 0.0, -300.0]])
    ids = torch.arange(2)
    equal = gumbel_mix(logits, logits, torch.eye(3), ids, seed=SEED, tau=1.0, prior_mix=0.0)
    assert torch.equal(equal.kl, torch.zeros(2))
    far = gumbel_mix(logits, logits.flip(-1), torch.eye(3), ids, seed=SEED, tau=1.0, prior_mix=0.0)
    assert far.kl.isfinite().all()
    assert far.entropy_q[1] == 0
    assert far.kl[1] == 600


def test_bf16_is_fp32_inside():
    *inputs, ids = draw(dtype=torch.bfloat16)
    mix = gumbel_mix(*inputs, ids, seed=SEED, tau=1.0, prior_mix=0.5)
    exact = gumbel_mix(*(x.float() for x in inputs), ids, seed=SEED, tau=1.0, prior_mix=0.5)
    assert mix.z.dtype == torch.bfloat16
    assert torch.equal(mix.z, exact.z.bfloat16())
    assert torch.equal(mix.kl, exact.kl)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits_p": torch.zeros(5, 7)}, r"must both be \[B, K\], got \[5, 6\] and \[5, 7\]"),
        ({"logits_q": torch.zeros(5), "logits_p": torch.zeros(5)}, r"must both be \[B, K\]"),
        ({"codebook": torch.zeros(7, 4)}, r"codebook must be \[K, H\] with K = 6"),
        ({"sample_ids": torch.zeros(4, dtype=torch.int64)}, r"sample_ids must be \[B\] with B = 5"),
        ({"sample_ids": torch.zeros(5)}, "int64"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": float("nan")}, "tau must be positive"),
        ({"prior_mix": 1.5}, r"prior_mix must be in \[0, 1\]"),
        ({"seed": -3}, "seed must be in"),
    ],
)
def test_errors(change, message):
    logits_q, logits_p, codebook, ids = draw()
    arguments = {"logits_q": logits_q, "logits_p": logits_p, "codebook": codebook, "sample_ids": ids}
    with pytest.raises(ValueError, match=message):
        gumbel_mix(**{**arguments, "seed": SEED, "tau": 1.0, "prior_mix": 0.5, **change})
