"""Accuracies on query pairs, together and by group."""

import pytest
import torch

from megatron_lpc.config import LossConfig
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.support_report import report_support

GROUPS = ["a", "a", "b", "b", "c"]
IS_QUERY = torch.tensor([True, True, True, False, False])
# Whether each pair is ordered correctly, under three latents.
CORRECT = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 1, 1]], dtype=torch.bool)


@pytest.fixture
def table():
    chosen = torch.where(CORRECT, 1.0, -1.0).double().T
    zeros = torch.zeros(5, 2, dtype=torch.float64)
    logits = torch.zeros(5, 4, dtype=torch.float64)
    return PairTable(
        example_index=torch.arange(5),
        logps=torch.stack([chosen, -chosen], dim=-1),
        reference_logps=zeros,
        response_length=zeros + 3,
        posterior_logits=logits,
        prior_logits=logits,
    )


def test_accuracy_under_each_latent_and_of_each_group(table):
    mixtures = {"a": torch.tensor([0.25, 0.75]), "b": torch.tensor([1.0, 0.0]), "z": torch.tensor([0.0, 1.0])}
    report = report_support(
        LossConfig(loss_type="dpo"),
        table,
        ("prior", "posterior", "support"),
        groups=GROUPS,
        is_query=IS_QUERY,
        mixtures=mixtures,
    )
    assert report.query_pairs == 3
    assert report.accuracy == pytest.approx({"prior": 0.0, "posterior": 1 / 3, "support": 2 / 3})
    assert report.left_out == ["c"]
    assert {name: (group.query_pairs, group.accuracy) for name, group in report.groups.items()} == {
        "a": (2, 1.0),
        "b": (1, 0.0),
        "z": (0, None),
    }
    assert report.groups["a"].mixture == [0.25, 0.75]
