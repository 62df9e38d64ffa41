"""Two and four tensor parallel ranks (real processes, gloo) compute what one process computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import torchrun

from .pair_logps_cases import CASES, CHUNK, HIDDEN_SIZE, run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Case -> what each of its ranks saved."""
    found = {}
    for count in (2, 4):
        folder = tmp_path_factory.mktemp("ranks")
        torchrun(count, Path(__file__).with_name("pair_logps_worker.py"), str(folder))
        saved = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
        found |= {name: [rank[name] for rank in saved] for name in saved[0]}
    return found


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(ranks, name):
    case = CASES[name]
    one, every = run(case, None, None), [rank["outputs"] for rank in ranks[name]]
    for key in one.keys() - {"lm_head_weight"}:
        assert all(torch.equal(rank[key], every[0][key]) for rank in every), f"{key} differs between the ranks"
    together = {
        **every[0],
        **(
            {"lm_head_weight": torch.cat([rank["lm_head_weight"] for rank in every])} if "lm_head_weight" in one else {}
        ),
    }
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[case.dtype]
    for key, expected in one.items():
        assert together[key].dtype == expected.dtype
        assert together[key].isfinite().all()
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        torch.testing.assert_close(
            together[key], expected, rtol=tolerance, atol=tolerance * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


def _numbers(calls, kind):
    return sum(int(call.split()[1].rstrip("!")) for call in calls if call.startswith(kind))


@pytest.mark.parametrize("name", CASES)
def test_collectives_are_those_of_the_docstring(ranks, name):
    case = CASES[name]
    latents = case.latents or 1
    hidden = 0 if case.only_z else case.tokens * HIDDEN_SIZE
    z = latents * case.pairs_of_z * HIDDEN_SIZE
    for rank in ranks[name]:
        calls = rank["collectives"]
        assert all(call.endswith("!") for call in calls), "a collective is waited for on the spot"
        assert _numbers(calls, "gather") == (4 if case.entropy else 3) * latents * case.tokens
        added_to_hidden = case.algorithm == "pairwise" and latents == 1 and not case.only_z
        assert _numbers(calls, "reduce") == (
            latents * hidden if case.algorithm == "frozen" else hidden + z * (not added_to_hidden)
        )


@pytest.mark.parametrize("algorithm", ["pairwise", "frozen"])
def test_gathering_statistics_overlaps_the_next_product(ranks, algorithm):
    """The second chunk's own statistics are sent before anything is done with the first chunk's."""
    calls = [call.split()[0] for call in ranks[f"{algorithm}, equal"][0]["collectives"]]
    assert calls.count("gather") > 2
    assert calls[:5] == ["gather", "gather", "reduce", "gather", "reduce"]
    assert CASES[f"{algorithm}, equal"].tokens > 2 * CHUNK
