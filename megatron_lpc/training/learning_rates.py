"""Peak learning rates: the backbone's, and those of the parameters of the LPC head."""

from __future__ import annotations

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.config.latent_head_sizes import latent_head_sizes

_INPUTS_OF_LATENT_LR = 256
"""Inputs of a matrix whose peak learning rate is `latent_lr`."""


def peak_lr(training: TrainingConfig) -> float:
    """Peak learning rate of all parameters that have none of their own; of the LPC head under `freeze_backbone`."""
    if training.freeze_backbone:
        return training.latent_lr
    return training.lr


def head_learning_rates(config: Config) -> dict[str, float]:
    """Parameter of the LPC head, by its name in the head -> its peak learning rate.

    Adam changes each weight by about its learning rate, and so what a matrix gives by about that times its inputs.
    Hence a matrix has a rate in inverse proportion to them (as in muP, arXiv 2203.03466, table 3). What gives the
    latent is in units of the hidden states (`set_code_unit`) and has `codebook_lr`: the codes, and in the control the
    layer that gives z.
    """
    training = config.training
    sizes = latent_head_sizes(config.latent, config.model.hidden_size)
    if config.latent.latent_mode == "continuous":
        return {
            "network.0.weight": training.latent_lr * _INPUTS_OF_LATENT_LR / sizes.hidden_size,
            "network.0.bias": training.latent_lr,
            "network.2.weight": training.codebook_lr / sizes.control_mlp_hidden_size,
            "network.2.bias": training.codebook_lr,
        }
    rates = {"codebook": training.codebook_lr}
    for name, inputs in sizes.matrix_inputs.items():
        rates[f"{name}.weight"] = training.latent_lr * _INPUTS_OF_LATENT_LR / inputs
        rates[f"{name}.bias"] = training.latent_lr
    return rates
