"""Histograms of a scored data set, against vectors made one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_lpc.evaluation.latent_histograms import latent_histograms
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.training.histogram import Histogram, histogram_of_codes, histogram_of_values

PAIRS, CODES, HIDDEN = 50, 4, 6


@pytest.fixture
def table() -> PairTable:
    generator = torch.Generator().manual_seed(3)
    nothing = torch.zeros(PAIRS, 0, dtype=torch.float64)
    return PairTable(
        example_index=torch.arange(PAIRS),
        logps=nothing[..., None],
        code_logps=nothing[..., None],
        reference_logps=nothing,
        response_length=nothing,
        posterior_logits=3 * torch.randn(PAIRS, CODES, generator=generator, dtype=torch.float64),
        prior_logits=torch.randn(PAIRS, CODES, generator=generator, dtype=torch.float64),
        latent_mean=nothing,
    )


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randn(CODES, HIDDEN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def same(found: Histogram, values: torch.Tensor) -> None:
    counts, edges = np.histogram(values.numpy(), bins=30)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-9)
    np.testing.assert_array_equal(found.counts, counts)


def test_of_codes(table: PairTable, codes: torch.Tensor) -> None:
    found = latent_histograms(table, codes)
    assert len(found) == 8
    same(found["lpc/codebook_norm"], codes.norm(dim=-1))
    for name, logits in (("posterior", table.posterior_logits), ("prior", table.prior_logits)):
        weights = logits.softmax(-1)
        np.testing.assert_allclose(found[f"lpc/usage/{name}"].counts, weights.sum(0).numpy())
        assert found[f"lpc/usage/{name}"].edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
        same(found[f"lpc/largest_weight/{name}"], weights.amax(-1))
        same(found[f"lpc/z_norm/{name}"], (weights @ codes).norm(dim=-1))
    first = [int((table.posterior_logits.argmax(-1) == code).sum()) for code in range(CODES)]
    assert found["lpc/first_choice"].counts.tolist() == first


def test_of_models_without_codes(table: PairTable) -> None:
    no_codes = replace(table, prior_logits=torch.zeros(PAIRS, 0), posterior_logits=torch.zeros(PAIRS, 0))
    assert latent_histograms(no_codes, None) == {}
    mean = torch.arange(2.0 * PAIRS, dtype=torch.float64).view(PAIRS, 2)
    found = latent_histograms(replace(no_codes, latent_mean=mean), None)
    assert found.keys() == {"lpc/mean_norm/posterior"}
    same(found["lpc/mean_norm/posterior"], mean.norm(dim=-1))


def test_many_codes_share_bins() -> None:
    """Weights & Biases takes 512 bins."""
    found = histogram_of_codes(torch.arange(1025))
    assert len(found.counts) == 342
    assert found.counts[:2].tolist() == [0 + 1 + 2, 3 + 4 + 5]
    assert found.counts.sum() == sum(range(1025))
    assert found.edges[[0, 1, -1]].tolist() == [-0.5, 2.5, 1024.5]


def test_values_that_are_not_finite_are_left_out() -> None:
    found = histogram_of_values(torch.tensor([1.0, torch.nan, 2.0, torch.inf]))
    assert found.counts.sum() == 2
    assert histogram_of_values(torch.tensor([torch.nan])).counts.sum() == 0


@pytest.mark.parametrize("value", [1.0, 0.0, -3e8])
def test_values_that_differ_by_rounding_are_equal(value: float) -> None:
    """Such as the largest weights of codes of which each pair has one."""
    values = torch.tensor([value, math.nextafter(value, math.inf)] * 4, dtype=torch.float64)
    found = histogram_of_values(values)
    assert found.counts.max() == 8
    assert found.edges[0] <= value <= found.edges[-1]
