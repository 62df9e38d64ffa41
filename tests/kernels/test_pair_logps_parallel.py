"""Two tensor parallel ranks (real processes, gloo) compute what one process computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import torchrun

from .pair_logps_cases import CASES, run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(2, Path(__file__).with_name("pair_logps_worker.py"), str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(ranks, name):
    case = CASES[name]
    one, (left, right) = run(case, None, None), (rank[name] for rank in ranks)
    for key in ("sums", "rows", "hidden", "z"):
        assert torch.equal(left[key], right[key]), f"{key} differs between the ranks"
    both = {**left, "weight": torch.cat((left["weight"], right["weight"]))}
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[case.dtype]
    for key, expected in one.items():
        assert both[key].dtype == expected.dtype
        assert both[key].isfinite().all()
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        torch.testing.assert_close(both[key], expected, rtol=tolerance, atol=tolerance * scale, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_collectives_are_those_of_the_docstring(ranks, name):
    case = CASES[name]
    latents, rows, width, pairs = case.latents or 1, case.rows, 8, 3
    expected = [2 * latents * rows, latents * rows, rows * width] if rows else []
    for rank in ranks:
        assert rank[name]["collectives"].tolist() == [*expected, latents * pairs * width]
