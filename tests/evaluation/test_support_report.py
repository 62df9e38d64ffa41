"""Accuracies on query pairs, together and by group."""

import math

import pytest
import torch

from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.evaluation.support_report import report_support

GROUPS = ["a", "a", "b", "b", "c"]
IS_QUERY = torch.tensor([True, True, True, False, False])
# Whether each pair is ordered correctly, under four latents.
CORRECT = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)


def test_accuracy_under_each_latent_and_of_each_group():
    latents = GroupLatents(
        mixtures={"a": torch.tensor([0.25, 0.75]), "b": torch.tensor([1.0, 0.0]), "z": torch.tensor([0.0, 1.0])},
        log_likelihoods={group: torch.tensor([0.0, math.log(3)]) for group in "abz"},
        prompts={},
    )
    correct = dict(zip(("prior", "posterior", "support", "support_exact"), CORRECT, strict=True))
    correct["swapped"] = torch.tensor([0.5, 0, 1, 1, 1], dtype=torch.float64)
    report = report_support(correct, groups=GROUPS, is_query=IS_QUERY, latents=latents)
    assert report.query_pairs == 3
    of_latents = {"prior": 0, "posterior": 1 / 3, "support": 2 / 3, "support_exact": 1 / 3, "swapped": 1 / 2}
    assert report.accuracy == pytest.approx(of_latents)
    assert report.left_out == ["c"]
    assert {name: (group.query_pairs, group.accuracy) for name, group in report.groups.items()} == {
        "a": (2, 1.0),
        "b": (1, 0.0),
        "z": (0, None),
    }
    assert {name: group.accuracy_exact for name, group in report.groups.items()} == {"a": 0.0, "b": 1.0, "z": None}
    assert report.groups["a"].mixture == [0.25, 0.75]
    assert report.groups["a"].posterior == pytest.approx([0.25, 0.75])
