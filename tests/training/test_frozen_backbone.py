"""A frozen backbone: the numbers are those of an unfrozen one whose learning rate is 0, and it costs only the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lpc.config import Config, ConfigError, parse_args, validate
from megatron_lpc.model import unwrapped
from megatron_lpc.train import Evaluations, evaluate
from megatron_lpc.training.build import Run, assemble_run
from megatron_lpc.training.optimizer_state import stateful_parts
from megatron_lpc.training.setup import RunContext, resolve_device_defaults, start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep

UNFROZEN = ("--lr", "0")
FROZEN = ("--lr", "5e-7", "--freeze-backbone")
STEPS = 3
# MKL multiplies fewer than 4 rows by another kernel. Where all have as many, a row's bits do not depend on the others.
PAIRS = ("--micro-batch-size", "4")
# Clipping would see the gradients of an unfrozen backbone.
COMMON = ("--train-iters", str(STEPS), "--clip-grad", "0", "--latent-lr", "1e-2", *PAIRS)
SAME_PRODUCTS = ("--logps-algorithm", "recompute")
"""`pairwise` adds z to the hidden states where these want a gradient, and to the logits where they do not."""


@dataclass(frozen=True)
class Trained:
    run: Run
    metrics: list[dict[str, float]]
    head: dict[str, Tensor]
    evaluations: Evaluations

    @property
    def losses(self) -> list[float]:
        return [metrics["loss"] for metrics in self.metrics]


@pytest.fixture(scope="module")
def context(tiny_run) -> Iterator[RunContext]:
    yield start_distributed(_config(tiny_run, *UNFROZEN))
    if dist.is_initialized():
        stop_distributed()


def _config(tiny_run, *flags: str) -> Config:
    return parse_args(["--config", tiny_run.config, *COMMON, *flags])


def _train(context: RunContext, config: Config) -> Trained:
    validate(config, 1)
    run = assemble_run(replace(context, config=resolve_device_defaults(config, context.platform)))
    step = TrainStep(run.context, run.policy, run.reference)
    metrics = [step(batches, number).metrics for number, batches in zip(range(STEPS), run.batches(), strict=True)]
    head = unwrapped(run.policy.chunks[0]).latent_head.named_parameters()
    return Trained(run, metrics, {name: weight.detach().clone() for name, weight in head}, evaluate(run))


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--loss-type", "simpo"),
        ("--loss-type", "ipo", "--relaxation", "straight_through"),
        ("--latent-mode", "continuous"),
        ("--share-prompt",),
    ],
)
def test_equals_an_unfrozen_backbone_that_does_not_learn(tiny_run, context: RunContext, flags: tuple[str, ...]) -> None:
    one = _train(context, _config(tiny_run, *UNFROZEN, *SAME_PRODUCTS, *flags))
    other = _train(context, _config(tiny_run, *FROZEN, *SAME_PRODUCTS, *flags))
    assert one.losses == other.losses, "to the bit"
    assert one.losses[0] != one.losses[-1]
    for name, weight in one.head.items():
        assert torch.equal(weight, other.head[name]), name
    assert one.evaluations == other.evaluations
    clock = {"tokens_per_sec", "mfu", "step_seconds"}
    for unfrozen, frozen in zip(one.metrics, other.metrics, strict=True):
        assert {name for name in unfrozen if unfrozen[name] != frozen[name]} <= clock | {"grad_norm"}
        assert 0 < frozen["grad_norm"] < unfrozen["grad_norm"], "of the head only"


def test_default_algorithm_agrees(tiny_run, context: RunContext) -> None:
    one = _train(context, _config(tiny_run, *UNFROZEN))
    other = _train(context, _config(tiny_run, *FROZEN))
    assert one.losses == pytest.approx(other.losses, abs=1e-6)
    for name, weight in one.head.items():
        torch.testing.assert_close(weight, other.head[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("flags", [(), ("--use-distributed-optimizer",), ("--bf16",)])
def test_nothing_is_kept_for_the_backbone(tiny_run, context: RunContext, flags: tuple[str, ...]) -> None:
    run = _train(context, _config(tiny_run, *FROZEN, *flags)).run
    (chunk,) = run.policy.chunks
    model = unwrapped(chunk)
    of_head = sum(weight.numel() for weight in model.latent_head.parameters())
    (buffer,) = chunk.buffers
    assert {id(weight) for weight in buffer.params} == {id(weight) for weight in model.latent_head.parameters()}
    assert buffer.grad_data.numel() < of_head + 64 * len(buffer.params) + 128, "padding beside them, no more"
    state = [part.optimizer.state for part in stateful_parts(run.policy.optimizer)]
    sizes = [kinds["exp_avg"].numel() for parameters in state for kinds in parameters.values()]
    assert sum(sizes) == of_head
    for name, weight in model.named_parameters():
        assert weight.requires_grad == name.startswith("latent_head."), name
        assert weight.grad is None or name.startswith("latent_head."), name
        assert name.startswith("latent_head.") or not hasattr(weight, "main_grad"), name
    assert not hasattr(run.reference, "chunks"), "no second model"


def test_no_graph_reaches_the_backbone(tiny_run, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_lpc.model import preference_model

    seen = []
    gather = preference_model.hidden_of_pairs
    monkeypatch.setattr(
        preference_model, "hidden_of_pairs", lambda hidden, *args: seen.append(hidden) or gather(hidden, *args)
    )
    _train(context, _config(tiny_run, *FROZEN))
    assert seen
    assert not any(hidden.requires_grad for hidden in seen)


def test_resumes_exactly_and_only_as_it_was(tiny_run, context: RunContext, tmp_path: Path) -> None:
    flags = (*FROZEN, "--save", str(tmp_path))
    whole = _train(context, _config(tiny_run, *flags))
    half = assemble_run(replace(context, config=resolve_device_defaults(_config(tiny_run, *flags), context.platform)))
    step, state = TrainStep(half.context, half.policy, half.reference), half.start
    for number, batches in zip(range(2), half.batches(), strict=False):
        state = state.after_step(8, step(batches, number).updated)
    half.save_checkpoint(state)
    resumed = _config(tiny_run, *flags, "--load", str(tmp_path))
    run = assemble_run(replace(context, config=resolve_device_defaults(resumed, context.platform)))
    assert run.start.iteration == 2
    last = TrainStep(run.context, run.policy, run.reference)(next(run.batches()), 2)
    assert last.metrics["loss"] == whole.losses[-1]
    for name, weight in unwrapped(run.policy.chunks[0]).latent_head.named_parameters():
        assert torch.equal(weight, whole.head[name]), name
    unfrozen = _config(tiny_run, *UNFROZEN, "--save", str(tmp_path), "--load", "auto")
    with pytest.raises(ConfigError, match="--no-freeze-backbone: the checkpoint's run does not train its backbone"):
        assemble_run(replace(context, config=resolve_device_defaults(unfrozen, context.platform)))
