"""Train with the project's own training functions in one process, for `test_transformers_trajectory`.

    python trajectory_worker.py OUTPUT.pt

Writes, per case of `CASES`: the weights before the first step, the micro-batches of every step, and its losses and gradient norms.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from layout_cases import layout_config, pair_batches

from megatron_lpc.config import Config, LatentConfig, LossConfig, ModelConfig, TrainingConfig
from megatron_lpc.losses import LatentSchedule, finish_metrics, sum_metrics, uses_reference
from megatron_lpc.model import build_model, wrap_data_parallel
from megatron_lpc.platform import Platform
from megatron_lpc.training.objective import TrainingObjective, training_query
from megatron_lpc.training.optimizer import build_optimizer, build_scheduler, optimizer_step
from megatron_lpc.training.pipeline import train_pass
from megatron_lpc.training.reference import NoReference, OnlineReference
from megatron_lpc.training.setup import start_distributed

STEPS = 20
CASES = {"dpo": (LossConfig(loss_type="dpo"), False), "simpo": (LossConfig(loss_type="simpo", beta=2.0), True)}
"""name -> objective, whether the LM head has weights of its own."""


def config_of(case: str) -> Config:
    """Weight decay, warm-up and clipping are all at work."""
    loss, untied = CASES[case]
    small = asdict(layout_config("single", "dpo-none-tied").model)
    return Config(
        model=ModelConfig(**small | {"untie_embeddings_and_output_weights": untied}),
        latent=LatentConfig(latent_mode="none"),
        loss=loss,
        data=layout_config("single", "dpo-none-tied").data,
        parallel=layout_config("single", "dpo-none-tied").parallel,
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


def run_case(config: Config, platform: Platform) -> dict[str, object]:
    policy = build_model(config, platform, config.latent)
    reference = OnlineReference(config, platform) if uses_reference(config.loss) else NoReference()
    for model in [policy, *([reference.chunks] if isinstance(reference, OnlineReference) else [])]:
        _perturb_norms(model[0])
    weights = {name: parameter.detach().clone() for name, parameter in policy[0].named_parameters()}
    chunks = wrap_data_parallel(config, policy)
    optimizer = build_optimizer(config, chunks)
    scheduler = build_scheduler(config, optimizer, STEPS)
    schedule = LatentSchedule(config.latent, STEPS)
    steps, losses, norms = [], [], []
    for step in range(STEPS):
        batches = pair_batches(config, seed=step)
        steps.append([vars(batch) for batch in batches])
        chunks[0].zero_grad_buffer()
        optimizer.zero_grad()
        state = schedule.at(step)
        objective = TrainingObjective(config, state)
        parts = train_pass(list(chunks), reference.attach(batches), training_query(config, state), objective)
        losses.append(finish_metrics(sum_metrics(parts))["loss"])
        updated, norm = optimizer_step(optimizer, loss_is_finite=True)
        assert updated
        norms.append(norm)
        scheduler.step(increment=1)
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
    platform = start_distributed(config_of("dpo"))
    torch.save({case: run_case(config_of(case), platform) for case in CASES}, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
