"""Short runs in this process, to be compared: a backbone that is frozen, and one whose learning rate is 0."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from megatron_lpc.config import Config, parse_args, validate
from megatron_lpc.evaluation.during_training import evaluate_run
from megatron_lpc.model import unwrapped
from megatron_lpc.train import Evaluations
from megatron_lpc.training.build import Run, assemble_run
from megatron_lpc.training.setup import RunContext, resolve_device_defaults
from megatron_lpc.training.step import TrainStep

UNFROZEN = ("--lr", "0")
FROZEN = ("--lr", "5e-7", "--freeze-backbone")
STEPS = 3
# What a pair gives must not depend, in its last bits, on the pairs that it is computed with. Matrix products of fewer
# than 4 rows go to another kernel of MKL. Attention ends a sequence in blocks whose sizes depend on its length.
SAME_ROWS = ("--micro-batch-size", "4", "--pad-to-multiple-of", "32")
# Clipping would see the gradients of an unfrozen backbone.
COMMON = ("--train-iters", str(STEPS), "--clip-grad", "0", "--latent-lr", "1e-2", *SAME_ROWS)
SAME_PRODUCTS = ("--logps-algorithm", "recompute")
"""`pairwise` adds z to the hidden states where these want a gradient, and to the logits where they do not."""


CLOCK = {"tokens_per_sec", "mfu", "step_seconds"}
"""Metrics that differ from run to run."""


@dataclass(frozen=True)
class Trained:
    """A run after its steps."""

    run: Run
    metrics: list[dict[str, float]]
    head: dict[str, Tensor]
    evaluations: Evaluations

    @property
    def losses(self) -> list[float]:
        return [metrics["loss"] for metrics in self.metrics]


def config_of(tiny_run, *flags: str) -> Config:
    return parse_args(["--config", tiny_run.config, *COMMON, *flags])


def train_run(context: RunContext, config: Config) -> Trained:
    validate(config, 1)
    run = assemble_run(replace(context, config=resolve_device_defaults(config, context.platform)))
    step = TrainStep(run.context, run.policy, run.reference)
    metrics = [step(batches, number).metrics for number, batches in zip(range(STEPS), run.batches(), strict=True)]
    head = unwrapped(run.policy.chunks[0]).latent_head.named_parameters()
    return Trained(run, metrics, {name: weight.detach().clone() for name, weight in head}, evaluate_run(run).metrics)
