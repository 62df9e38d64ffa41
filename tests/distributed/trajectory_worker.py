"""Train with the project's own training functions in one process, for `test_transformers_trajectory`.

    python trajectory_worker.py OUTPUT.pt

Writes, per case of `CASES`: the weights before the first step, the micro-batches of every step, and its losses and
gradient norms.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from layout_cases import layout_config, pair_batches

from megatron_lpc.config import Config, LatentConfig, LossConfig, TrainingConfig
from megatron_lpc.losses import uses_reference
from megatron_lpc.training.policy import build_policy, make_trainable
from megatron_lpc.training.reference import NoReference, OnlineReference
from megatron_lpc.training.setup import RunContext, start_distributed
from megatron_lpc.training.step import TrainStep

STEPS = 20
CASES = {"dpo": (LossConfig(loss_type="dpo"), False), "simpo": (LossConfig(loss_type="simpo", beta=2.0), True)}
"""name -> objective, whether the LM head has weights of its own."""


def config_of(case: str) -> Config:
    """Weight decay, warm-up and clipping are all at work."""
    loss, untied = CASES[case]
    base = layout_config("single", "dpo-none-tied")
    return replace(
        base,
        model=replace(base.model, untie_embeddings_and_output_weights=untied),
        latent=LatentConfig(latent_mode="none"),
        loss=loss,
        training=TrainingConfig(
            micro_batch_size=2,
            global_batch_size=8,
            lr=1e-3,
            min_lr=1e-4,
            weight_decay=0.1,
            clip_grad=1.0,
            lr_warmup_fraction=0.2,
            seed=3,
        ),
    )


def run_case(context: RunContext) -> dict[str, object]:
    config = context.config
    chunks = build_policy(context)
    reference = OnlineReference(context) if uses_reference(config.loss) else NoReference()
    for model in [chunks, *([reference.chunks] if isinstance(reference, OnlineReference) else [])]:
        _perturb_norms(model[0])
    weights = {name: parameter.detach().clone() for name, parameter in chunks[0].named_parameters()}
    train_step = TrainStep(context, make_trainable(context, chunks, STEPS), reference)
    steps, losses, norms = [], [], []
    for step in range(STEPS):
        batches = pair_batches(config, seed=step)
        steps.append([vars(batch) for batch in batches])
        result = train_step(batches, step)
        assert result.updated
        losses.append(result.metrics["loss"])
        norms.append(result.metrics["grad_norm"])
    return {"weights": weights, "steps": steps, "losses": losses, "norms": norms}


@torch.no_grad()
def _perturb_norms(model: torch.nn.Module) -> None:
    """Norm weights are 1 in a new model: swapped ones would go unseen."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def main() -> None:
    torch.set_num_threads(1)
    context = start_distributed(config_of("dpo"))
    results = {case: run_case(replace(context, config=config_of(case))) for case in CASES}
    torch.save(results, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
