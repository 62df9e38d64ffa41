"""Peak learning rates: the backbone's, and those of the parameters of the LPC head."""

from __future__ import annotations

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.config.gaussian_head_sizes import gaussian_head_sizes
from megatron_lpc.config.latent_head_sizes import latent_head_sizes

_REFERENCE_SIZE = 256
"""Inputs of a matrix whose peak learning rate is `latent_lr`; hidden size at which that of codes is `codebook_lr`."""
_PRIOR_SHARE = 0.1
"""Rate of the prior network, as a share of `latent_lr`. A prior as fast as the codes settles on one code before they
differ, and the exact posterior then gives all others nothing to learn from."""


def peak_lr(training: TrainingConfig) -> float:
    """Peak learning rate of all parameters that have none of their own; of the LPC head under `freeze_backbone`."""
    if training.freeze_backbone:
        return training.latent_lr
    return training.lr


def per_width(rate: float, hidden_size: int) -> float:
    """The learning rate of a vector that is added to hidden states, given that at hidden size 256.

    A change of all H numbers of a code by one unit changes a logit by about sqrt(H), for a row of the LM head is about
    1 / sqrt(H) of a unit where logits are of order 1; hence the root.
    """
    return rate * (_REFERENCE_SIZE / hidden_size) ** 0.5


def head_learning_rates(config: Config) -> dict[str, float]:
    """Parameter of the LPC head, by its name in the head -> its peak learning rate.

    Adam changes each weight by about its learning rate, and so what a matrix gives by about that times its inputs.
    Hence a matrix has a rate in inverse proportion to them (as in muP, arXiv 2203.03466, table 3). What gives the
    latent has `codebook_lr`: the codes, the vectors of groups, and in the control and of a Gaussian latent the layer
    that gives z. It is in units of the hidden states (`set_code_unit`); see `per_width`.
    """
    training = config.training
    sizes = latent_head_sizes(config.latent, config.model.hidden_size)
    codebook_lr = per_width(training.codebook_lr, sizes.hidden_size)
    if config.latent.latent_mode == "continuous":
        return {
            "network.0.weight": training.latent_lr * _REFERENCE_SIZE / sizes.hidden_size,
            "network.0.bias": training.latent_lr,
            "network.2.weight": codebook_lr / sizes.control_mlp_hidden_size,
            "network.2.bias": codebook_lr,
        }
    if config.latent.latent_mode == "embedding":
        return {"vectors": codebook_lr}
    rates = {"codebook": codebook_lr}
    matrices = sizes.matrix_inputs
    if config.latent.latent_mode == "gaussian":
        of_gaussian = gaussian_head_sizes(config.latent, config.model.hidden_size)
        matrices = of_gaussian.encoder_inputs
        rates = {"decoder.weight": codebook_lr / of_gaussian.latent_size, "decoder.bias": codebook_lr}
    for name, inputs in matrices.items():
        latent_lr = training.latent_lr * (_PRIOR_SHARE if name.startswith("prior.") else 1)
        rates[f"{name}.weight"] = latent_lr * _REFERENCE_SIZE / inputs
        rates[f"{name}.bias"] = latent_lr
    return rates
