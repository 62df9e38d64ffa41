"""The latent preference code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.idle_rules import (
    AMORTIZED_INFERENCE,
    CONSTANT_TAU,
    EXACT_INFERENCE,
    NO_CODEBOOK,
    NO_CODES,
    NO_DIVERGENCE,
    NO_FINAL_TAU,
    NO_KL,
    NO_NETWORKS,
    NO_POSTERIOR,
    NO_SAMPLING,
    NOT_EMBEDDING,
    NOT_GAUSSIAN,
)
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The latent preference code and its latent schedule (arXiv 2505.04993, section 3)."""

    latent_mode: Literal["lpc", "none", "continuous", "embedding", "gaussian"] = option("lpc", role=Role.HEAD)
    """`lpc`: discrete codes. `none`: the objective without a latent. `continuous`: parameter-matched control, an MLP of
    the prompt. `embedding`: a learned vector per known group (P-DPO). `gaussian`: a Gaussian vector that an
    encoder reads off pairs (VPL)."""

    known_groups: list[str] = option([], role=Role.HEAD, idle=NOT_EMBEDDING)
    """Groups (`group_column`) with a learned vector of their own; all those of the training data when empty. Any other
    group has the generic vector."""

    group_dropout: float = option(0.1, range="[0, 1)", role=Role.RUN, idle=NOT_EMBEDDING)
    """Probability that a pair in training has the generic vector, as if its group were unknown."""

    latent_inference: Literal["amortized", "exact"] = option("amortized", role=Role.HEAD, idle=NO_CODES)
    """`amortized`: a posterior network and a relaxed sample (the paper). `exact`: no posterior network and no noise;
    all codes are enumerated, and the loss is that of their marginal. With a `posterior_context` and a `group_column` it
    is the default."""

    exact_temperature: float = option(
        1.0, range="(0, inf)", role=Role.RUN, idle=(*NO_CODES, AMORTIZED_INFERENCE), evaluation=True
    )
    """Temperature T of exact inference: -T log sum_k p(k given x) exp(-loss_k / T). At 1 it is the marginal likelihood;
    towards 0 the best code of each pair alone counts."""

    # One code would be a constant: there is nothing to choose, and its KL is always 0.
    codebook_size: int = option(64, range="[2, inf)", role=Role.HEAD, idle=NO_CODEBOOK)
    """Number K of codes."""

    latent_size: int = option(32, range="[1, inf)", role=Role.HEAD, idle=NOT_GAUSSIAN)
    """Size d of the Gaussian latent."""

    codebook_init_std: float = option(0.3, range="[0, inf)", role=Role.RUN, idle=NO_NETWORKS)
    """Standard deviation of new codes, as a fraction of the hidden states that they are added to; 0 starts from the
    policy without a latent. Of what a Gaussian latent of unit variance adds, likewise."""

    latent_mlp_hidden_size: int | None = option(None, range="[1, inf)", role=Role.HEAD, idle=NO_NETWORKS)
    """Hidden size of the prior and posterior networks, and of the encoder of a Gaussian latent; the model's
    `hidden_size` when unset."""

    posterior_input: Literal["concat", "difference", "bilinear"] = option(
        "difference", role=Role.HEAD, idle=(*NO_NETWORKS, EXACT_INFERENCE)
    )
    """Input of the posterior network: h_w - h_l, [h_w; h_l] (the paper's), or [h_w; h_l; h_w * h_l]; vectors are
    normalized to a root mean square of 1."""

    # Of the head, for `support` must pool at evaluation as training has done.
    posterior_context: int = option(0, range="[0, inf)", role=Role.HEAD, idle=NO_POSTERIOR)
    """Other pairs M of the same group (`group_column`) from which the posterior of a pair is made in training, as a
    product of experts; such M + 1 pairs share a micro-batch. 0: the posterior reads the pair itself. Under exact
    inference all M + 1 pairs have one code. The Gaussian posterior is the mean over those pairs. With `group_column`
    the default is 7."""

    relaxation: Literal["soft", "straight_through"] = option("soft", role=Role.RUN, idle=NO_SAMPLING)
    """Gumbel-softmax weights as they are, or one-hot in the forward pass with the gradient of the soft ones."""

    gumbel_tau: float = option(1.0, range="(0, inf)", role=Role.RUN, idle=NO_SAMPLING)
    """Temperature of the Gumbel-softmax at the first step."""

    gumbel_tau_final: float | None = option(
        None,
        range="(0, inf)",
        role=Role.RUN,
        idle=(*NO_SAMPLING, CONSTANT_TAU),
    )
    """Temperature at the last step; `gumbel_tau` when unset."""

    gumbel_tau_schedule: Literal["constant", "linear", "exponential"] = option(
        "constant",
        role=Role.RUN,
        idle=(*NO_SAMPLING, NO_FINAL_TAU),
    )
    """How the temperature changes from the first step to the last."""

    prior_mix_initial: float = option(0.0, range="[0, 1]", role=Role.RUN, idle=NO_SAMPLING)
    """Prior mix m of the training latent z = (1 - m) z_q + m z_p at the first step."""

    prior_mix_final: float = option(0.0, range="[0, 1]", role=Role.RUN, idle=NO_SAMPLING)
    """Prior mix m at the last step; it changes linearly."""

    kl_weight: float = option(0.05, range="[0, inf)", role=Role.RUN, idle=NO_DIVERGENCE)
    """Weight lambda of KL(q || p) in the loss; for the Gaussian latent p is N(0, I)."""

    kl_warmup_iters: int = option(0, range="[0, inf)", role=Role.RUN, idle=(*NO_DIVERGENCE, NO_KL))
    """Steps over which lambda rises linearly from 0."""

    kl_free_bits: float = option(0.0, range="[0, inf)", role=Role.RUN, idle=(*NO_DIVERGENCE, NO_KL))
    """KL per pair, in bits, that is not penalized."""

    usage_entropy_weight: float = option(0.0, range="[0, inf)", role=Role.RUN, idle=NO_SAMPLING)
    """Weight of a bonus on the entropy of the mean posterior over a micro-batch, which keeps codes in use."""

    swap_guidance_weight: float = option(0.0, range="[0, inf)", role=Role.RUN, idle=NO_SAMPLING)
    """Weight of the divergence between the posterior of a pair and the mirrored posterior of the pair with chosen and
    rejected exchanged; codes 2 i and 2 i + 1 mirror each other."""
