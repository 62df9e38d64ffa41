import math

import pytest
import torch
from lpc_kernels import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise
from lpc_kernels.philox.pytorch_backend import log, philox, uniform
from lpc_kernels.philox.reference import gumbel_reference, philox_reference

KNOWN_ANSWERS = [  # Random123, kat_vectors: philox4x32 10; counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_numbers(counter, key, output):
    low, high = words(key)
    got = philox(tuple(torch.tensor(word) for word in words(counter)), low | high << 32)
    assert [int(word) for word in got] == words(output)


def test_uniform_is_that_of_tl_rand():
    word = torch.tensor([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
    scale = torch.tensor(4.6566127342e-10)
    expected = torch.tensor([0, 1, 0x7FFFFFFF, 0x7FFFFFFF, 1, 0]).float() * scale
    assert torch.equal(uniform(word), expected)
    assert uniform(word).max() < 1


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_reference_gives_the_published_numbers(counter, key, output):
    low, high = words(key)
    assert list(philox_reference(tuple(words(counter)), low | high << 32)) == words(output)


@pytest.mark.parametrize("source", [POSTERIOR_NOISE, PRIOR_NOISE])
def test_noise_is_that_of_the_reference(source):
    """To a rounding: the reference takes the logarithm of the C library."""
    ids = torch.tensor([0, 5, 2**31 + 3, 2**33 + 7, -1])
    seed = 2**40 + 17
    expected = [[gumbel_reference(int(sample), code, seed, source) for code in range(9)] for sample in ids]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(gumbel_noise(ids, 9, seed, source).double(), expected, rtol=1e-7, atol=1e-12)


def test_noise_is_frozen():
    """The noise of these ids has these bits in every version.

    They were made with this code, and Triton's Philox gives the same.
    """
    ids = torch.tensor([0, 2**33 + 7])
    bits = gumbel_noise(ids, 3, 2**40 + 17, PRIOR_NOISE).view(torch.int32)
    assert bits.tolist() == [[1060836671, 1039985281, 1073527511], [1074629928, 999085284, 1076883165]]


def test_noise_is_gumbel():
    noise = gumbel_noise(torch.arange(2000), 64, 7, POSTERIOR_NOISE).double()
    n = noise.numel()
    std = math.pi / math.sqrt(6)
    assert abs(noise.mean() - 0.5772156649) < 4 * std / math.sqrt(n)
    assert abs(noise.std() - std) < 0.02
    for quantile in (0.01, 0.5, 0.99):
        share = (noise < -math.log(-math.log(quantile))).double().mean()
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / n)
    # Neither codes nor neighbouring samples nor the two sources know of each other.
    other = gumbel_noise(torch.arange(2000), 64, 7, PRIOR_NOISE).double()
    for a, b in ((noise[:, :-1], noise[:, 1:]), (noise[:-1], noise[1:]), (noise, other)):
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(n)


def test_noise_of_a_sample_ignores_the_batch():
    ids = torch.tensor([5, 2**40, 0, 123456789012345, 2**31, 2**32, -1])
    noise = gumbel_noise(ids, 33, 11, POSTERIOR_NOISE)
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    assert torch.equal(gumbel_noise(ids[order], 33, 11, POSTERIOR_NOISE), noise[order])
    for row, sample in zip(noise, ids, strict=True):
        assert torch.equal(gumbel_noise(sample[None], 33, 11, POSTERIOR_NOISE)[0], row)
    assert torch.equal(gumbel_noise(ids, 7, 11, POSTERIOR_NOISE), noise[:, :7])


def test_every_word_of_the_key_and_counter_counts():
    base = gumbel_noise(torch.tensor([3]), 4, 5, POSTERIOR_NOISE)
    for ids, seed, source in (([4], 5, 0), ([3 + 2**32], 5, 0), ([3], 6, 0), ([3], 5 + 2**32, 0), ([3], 5, 1)):
        assert not torch.isclose(gumbel_noise(torch.tensor(ids), 4, seed, source), base).any()
    assert gumbel_noise(torch.empty(0, dtype=torch.int64), 4, 5, PRIOR_NOISE).shape == (0, 4)


def test_noise_is_finite_at_both_ends():
    ends = torch.stack((torch.tensor(2.0**-32), uniform(torch.tensor(0x7FFFFFFF)))).double()
    noise = -log(-log(ends))
    assert noise.isfinite().all()
    assert torch.allclose(noise, -torch.log(-torch.log(ends)), rtol=1e-12)


def test_logarithm():
    x = torch.cat(
        (torch.logspace(-300, 300, 5001, dtype=torch.float64), 1 - torch.logspace(-16, -0.01, 500, dtype=torch.float64))
    )
    assert torch.allclose(log(x), torch.log(x), rtol=1e-12, atol=0)
    assert log(torch.ones(1, dtype=torch.float64)) == 0


@pytest.mark.parametrize(
    ("ids", "codes", "seed", "source", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), 4, 0, 0, r"sample_ids must be \[B\] int64"),
        (torch.zeros(2, dtype=torch.int32), 4, 0, 0, r"sample_ids must be \[B\] int64"),
        (torch.zeros(2, dtype=torch.int64), 0, 0, 0, "num_codes must be at least 1"),
        (torch.zeros(2, dtype=torch.int64), 4, -1, 0, r"seed must be in \[0, 2\^64\)"),
        (torch.zeros(2, dtype=torch.int64), 4, 2**64, 0, r"seed must be in \[0, 2\^64\)"),
        (torch.zeros(2, dtype=torch.int64), 4, 0, 2, "source must be 0 .posterior. or 1 .prior."),
    ],
)
def test_errors(ids, codes, seed, source, message):
    with pytest.raises(ValueError, match=message):
        gumbel_noise(ids, codes, seed, source)
