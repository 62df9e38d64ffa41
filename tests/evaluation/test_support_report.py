"""Accuracies over held-out pairs, together and by group."""

import pytest
import torch

from megatron_lpc.config import Config, LossConfig
from megatron_lpc.evaluation.scoring import PairTable
from megatron_lpc.evaluation.support_report import judge

GROUPS = ["a", "a", "b", "b", "c"]
KEPT = torch.tensor([True, True, True, False, False])
# Whether each pair is judged right, under three latents.
RIGHT = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 1, 1]], dtype=torch.bool)


@pytest.fixture
def table():
    won = torch.where(RIGHT, 1.0, -1.0).double()
    zeros = torch.zeros(5, 2, dtype=torch.float64)
    codes = torch.zeros(5, 4, dtype=torch.float64)
    return PairTable(
        rows=torch.arange(5),
        logps=torch.stack([won, -won], dim=-1),
        reference=zeros,
        length=zeros + 3,
        posterior_logits=codes,
        prior_logits=codes,
    )


def test_accuracy_under_each_latent_and_of_each_group(table):
    latents = {"a": torch.tensor([0.25, 0.75]), "b": torch.tensor([1.0, 0.0]), "z": torch.tensor([0.0, 1.0])}
    report = judge(
        Config(loss=LossConfig(loss_type="dpo")), table, ("prior", "posterior", "support"), GROUPS, KEPT, latents
    )
    assert report.held_out == 3
    assert report.accuracy == pytest.approx({"prior": 0.0, "posterior": 1 / 3, "support": 2 / 3})
    assert report.left_out == ["c"]
    assert {name: (person.held_out, person.accuracy) for name, person in report.people.items()} == {
        "a": (2, 1.0),
        "b": (1, 0.0),
        "z": (0, None),
    }
    assert report.people["a"].mixture == [0.25, 0.75]
