"""The objectives against TRL's own code on the same log-probs, and their behaviour at the edges."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from megatron_lpc.config.schema import LossConfig
from megatron_lpc.losses import implicit_rewards, pair_metrics, preference_loss, uses_reference

PAIRS = 5
LENGTHS = torch.tensor([3, 7, 1, 4, 6, 2, 2, 9, 5, 4])


@pytest.fixture
def logps() -> tuple[Tensor, Tensor]:
    """Policy and reference, [2B] each; the last pair is a tie in every objective's reward."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = -(12 * torch.rand(2, 2 * PAIRS, generator=generator, dtype=torch.float64))
    policy[[PAIRS - 1, -1]] = torch.tensor([-6.0, -4.0], dtype=torch.float64)
    reference[[PAIRS - 1, -1]] = torch.tensor([-5.0, -3.0], dtype=torch.float64)
    return policy, reference


def trl_dpo(
    policy: Tensor,
    reference: Tensor,
    length: Tensor,
    loss_types: list[str],
    loss_weights: list[float],
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[float, dict[str, float]]:
    """Loss and metrics of TRL's `DPOTrainer` for responses with these summed log-probs.

    Its loss is inside the training step: we give that step a model that returns our log-probs, each
    response's spread evenly over its tokens.
    """
    trainer_module = pytest.importorskip("trl.trainer.dpo_trainer")
    longest = int(length.max())
    mask = (torch.arange(longest) < length[:, None]).long()
    prompted_mask = torch.nn.functional.pad(mask, (1, 0))
    per_token = (policy / length)[:, None] * mask
    output = SimpleNamespace(
        log_probs=per_token,
        entropy=torch.zeros_like(per_token),
        mean_logits=torch.zeros_like(per_token),
        is_top1=mask.bool(),
        aux_loss=None,
    )

    class Model:
        training = True

        def __call__(self, **kwargs: object) -> SimpleNamespace:
            return output

    identity = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=Model(),
        accelerator=identity,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=loss_weights,
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    ref_chosen, ref_rejected = reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(prompted_mask),
        "attention_mask": torch.ones_like(prompted_mask),
        "completion_mask": prompted_mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    loss = trainer_module.DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)
    return loss.item(), {name: values[-1] for name, values in trainer._metrics["train"].items()}


def trl_dpo_each(policy: Tensor, reference: Tensor, length: Tensor, **settings: Any) -> list[float]:
    """One loss per pair: TRL only gives the batch's mean, so each pair is its own batch."""
    pairs = [torch.tensor([i, i + PAIRS]) for i in range(PAIRS)]
    return [trl_dpo(policy[pair], reference[pair], length[pair], **settings)[0] for pair in pairs]


def trl_cpo(chosen: Tensor, rejected: Tensor, loss_type: str, **options: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and rewards of TRL's `CPOTrainer.cpo_loss`, a function of log-probs and a few settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpo = pytest.importorskip("trl.experimental.cpo")
    settings = {"alpha": 0.0, "label_smoothing": 0.0, **options}
    trainer = SimpleNamespace(loss_type=loss_type, accelerator=SimpleNamespace(device="cpu"), **settings)
    return cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)


@pytest.mark.parametrize(
    ("config", "loss_types", "loss_weights"),
    [
        (LossConfig(), ["sigmoid"], [1.0]),
        (LossConfig(beta=0.7), ["sigmoid"], [1.0]),
        (LossConfig(robust=True, label_smoothing=0.2), ["robust"], [1.0]),
        (LossConfig(rpo_alpha=0.3), ["sigmoid", "sft"], [1.0, 0.3]),
        (LossConfig(loss_type="ipo"), ["ipo"], [1.0]),
        (LossConfig(loss_type="ipo", beta=0.4, rpo_alpha=0.5), ["ipo", "sft"], [1.0, 0.5]),
        (LossConfig(loss_type="sft"), ["sft"], [1.0]),
    ],
    ids=str,
)
def test_equals_trl_dpo_trainer(
    config: LossConfig, loss_types: list[str], loss_weights: list[float], logps: tuple[Tensor, Tensor]
) -> None:
    policy, reference = logps
    ours = preference_loss(config, policy, reference, LENGTHS)
    settings = {
        "loss_types": loss_types,
        "loss_weights": loss_weights,
        "beta": config.beta,
        "label_smoothing": config.label_smoothing,
    }
    theirs = trl_dpo_each(policy, reference, LENGTHS, **settings)
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("loss_type", ["dpo", "ipo"])
def test_rewards_and_metrics_equal_trl(loss_type: Literal["dpo", "ipo"], logps: tuple[Tensor, Tensor]) -> None:
    policy, reference = logps
    config = LossConfig(loss_type=loss_type, beta=0.2)
    trl_name = {"dpo": "sigmoid", "ipo": "ipo"}[loss_type]
    loss, theirs = trl_dpo(policy, reference, LENGTHS, [trl_name], [1.0], beta=0.2)

    losses = preference_loss(config, policy, reference, LENGTHS)
    sums = pair_metrics(losses, implicit_rewards(config, policy, reference, LENGTHS), policy)
    means = {name: (value / PAIRS).item() for name, value in sums.items()}
    assert 0 < means["rewards/accuracies"] < 1
    assert means["loss"] == pytest.approx(loss)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        # TRL counts accuracies in fp32.
        assert means[f"rewards/{name}"] == pytest.approx(theirs[f"rewards/{name}"], rel=1e-6)
    for name in ("chosen", "rejected"):
        assert means[f"logps/{name}"] == pytest.approx(theirs[f"logps/{name}"])


def test_conservative_dpo_equals_trl(logps: tuple[Tensor, Tensor]) -> None:
    """TRL keeps label smoothing of the sigmoid loss in its CPO trainer only; on log-ratios that is conservative DPO."""
    policy, reference = logps
    chosen, rejected = (policy - reference).chunk(2)
    theirs, rewards_chosen, rewards_rejected = trl_cpo(chosen, rejected, "sigmoid", beta=0.3, label_smoothing=0.15)
    ours = preference_loss(LossConfig(beta=0.3, label_smoothing=0.15), policy, reference, LENGTHS)
    rewards = implicit_rewards(LossConfig(beta=0.3, label_smoothing=0.15), policy, reference, LENGTHS)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(rewards.chosen, rewards_chosen)
    torch.testing.assert_close(rewards.rejected, rewards_rejected)


def test_summed_ipo_equals_trl(logps: tuple[Tensor, Tensor]) -> None:
    """TRL's CPO trainer squares whatever log-probs it is given; on summed log-ratios that is OpenRLHF's IPO."""
    policy, reference = logps
    chosen, rejected = (policy - reference).chunk(2)
    theirs, _, _ = trl_cpo(chosen, rejected, "ipo", beta=0.3)
    ours = preference_loss(LossConfig(loss_type="ipo", beta=0.3, ipo_length_average=False), policy, reference, LENGTHS)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.4])
def test_simpo_equals_trl(gamma: float, logps: tuple[Tensor, Tensor]) -> None:
    policy, _ = logps
    chosen, rejected = (policy / LENGTHS).chunk(2)
    theirs, rewards_chosen, rewards_rejected = trl_cpo(chosen, rejected, "simpo", beta=2.0, simpo_gamma=gamma)
    ours = preference_loss(LossConfig(loss_type="simpo", beta=2.0, simpo_gamma=gamma), policy, None, LENGTHS)
    rewards = implicit_rewards(LossConfig(loss_type="simpo", beta=2.0, simpo_gamma=gamma), policy, None, LENGTHS)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(rewards.chosen, rewards_chosen)
    torch.testing.assert_close(rewards.rejected, rewards_rejected)


def test_sft_is_cross_entropy_of_the_chosen() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 11, generator=generator)
    targets = torch.randint(11, (2, 6), generator=generator)
    logps = logits.log_softmax(-1).gather(-1, targets[..., None]).sum((-2, -1))
    ours = preference_loss(LossConfig(loss_type="sft"), logps, None, torch.tensor([6, 6]))
    rewards = implicit_rewards(LossConfig(loss_type="sft"), logps, None, torch.tensor([6, 6]))
    torch.testing.assert_close(ours[0], torch.nn.functional.cross_entropy(logits[0], targets[0]))
    torch.testing.assert_close(rewards.rejected[0], 0.1 * logps[1] / 6)


ALL = [
    LossConfig(label_smoothing=0.1, rpo_alpha=0.2),
    LossConfig(robust=True, label_smoothing=0.1),
    LossConfig(loss_type="ipo", rpo_alpha=0.2),
    LossConfig(loss_type="ipo", ipo_length_average=False),
    LossConfig(loss_type="simpo", beta=2.0),
    LossConfig(loss_type="sft"),
]


@pytest.mark.parametrize("config", ALL, ids=str)
def test_gradient(config: LossConfig, logps: tuple[Tensor, Tensor]) -> None:
    policy, reference = logps
    assert torch.autograd.gradcheck(
        lambda p: preference_loss(config, p, reference, LENGTHS), policy.clone().requires_grad_()
    )


@pytest.mark.parametrize("config", ALL, ids=str)
@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_are_finite(config: LossConfig, margin: float) -> None:
    policy = torch.tensor([margin, -margin]).requires_grad_()
    losses = preference_loss(config, policy, torch.zeros(2), torch.tensor([1, 1]))
    losses.sum().backward()
    assert policy.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("config", ALL, ids=str)
def test_empty_response_gives_no_nan(config: LossConfig) -> None:
    losses = preference_loss(config, torch.zeros(2), torch.zeros(2), torch.tensor([0, 0]))
    assert torch.isfinite(losses).all()


def test_policy_equal_to_reference_costs_ln_2() -> None:
    logps = torch.tensor([-40.0, -1234.5, -77.0, -3.0])
    losses = preference_loss(LossConfig(), logps, logps.clone(), torch.tensor([3, 4, 5, 6]))
    rewards = implicit_rewards(LossConfig(), logps, logps.clone(), torch.tensor([3, 4, 5, 6]))
    assert losses.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert rewards.chosen.tolist() == [0, 0]


def test_half_precision_is_raised_and_rewards_carry_no_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16).requires_grad_()
    losses = preference_loss(LossConfig(), policy, torch.zeros(2), torch.tensor([1, 1]))
    rewards = implicit_rewards(LossConfig(), policy, torch.zeros(2), torch.tensor([1, 1]))
    assert losses.dtype is rewards.chosen.dtype is torch.float32
    assert losses.requires_grad
    assert not rewards.chosen.requires_grad


def test_which_objectives_have_a_reference() -> None:
    assert [uses_reference(LossConfig(loss_type=name)) for name in ("dpo", "ipo", "simpo", "sft")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("policy", "reference", "length", "message"),
    [
        (torch.zeros(3), torch.zeros(3), torch.ones(3), r"policy_logps must be \[2B\].*\[3\]"),
        (torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2), r"policy_logps must be \[2B\].*\[2, 2\]"),
        (torch.zeros(4), torch.zeros(2), torch.ones(4), r"reference_logps is \[2\], but policy_logps is \[4\]"),
        (torch.zeros(4), torch.zeros(4), torch.ones(2), r"response_length is \[2\], but policy_logps is \[4\]"),
        (
            torch.zeros(4),
            None,
            torch.ones(4),
            r"--loss-type dpo compares with a reference, but reference_logps is None",
        ),
    ],
)
def test_errors(policy: Tensor, reference: Tensor | None, length: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_loss(LossConfig(), policy, reference, length)
