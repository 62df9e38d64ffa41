"""The optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.idle_rules import (
    CONSTANT_LR,
    FROZEN_LR,
    NO_FP8,
    NO_LATENT,
    NO_NETWORKS,
    NOT_FROZEN,
    PACKED,
    STEPS_GIVEN,
)
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Batches, steps, optimizer and LR schedule."""

    micro_batch_size: int = option(4, range="[1, inf)", role=Role.RUN, idle=PACKED, evaluation=True)
    """Pairs per forward pass of one data parallel rank."""

    global_batch_size: int = option(32, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Pairs per optimizer step."""

    train_iters: int | None = option(None, range="[1, inf)", role=Role.RUN)
    """Optimizer steps; `num_train_epochs` decides when unset."""

    num_train_epochs: float = option(1.0, range="(0, inf)", role=Role.RUN, idle=STEPS_GIVEN)
    """Passes over the training data."""

    exit_interval: int | None = option(None, range="[1, inf)", role=Role.RUN)
    """End the run after a step whose number is a multiple of this, with a checkpoint when `save` is set."""

    exit_duration_in_mins: int | None = option(None, range="[1, inf)", role=Role.RUN)
    """End the run after the step in which it has run for this many minutes, with a checkpoint when `save` is set."""

    preflight: bool = option(False, role=Role.RUN)
    """Train nothing: check devices, bandwidth, clocks, folders, versions and data, print one table, and end; with exit
    code 1 when the run would fail."""

    seed: int = option(1234, range="[0, 4294967295]", role=Role.RUN, evaluation=True)
    """Seed of new weights, of the data order and of the latent noise."""

    deterministic: bool = option(False, role=Role.RUN, evaluation=True)
    """Use deterministic algorithms only, so that the same run gives the same bits, resumed too; slower on GPUs."""

    bf16: bool | None = option(None, role=Role.RUN, evaluation=True)
    """Compute in bfloat16 with fp32 master weights, or in fp32 (`--no-bf16`); bfloat16 on a GPU and fp32 on a CPU when
    unset."""

    fp8_format: Literal["e4m3", "hybrid"] | None = option(None, role=Role.RUN, evaluation=True)
    """Multiply in FP8 within TransformerEngine's layers: E4M3 throughout, or E5M2 for gradients (`hybrid`). The LM head
    and the LPC head stay in bfloat16. No FP8 when unset."""

    # Not `delayed`: its scales follow from earlier steps, which an evaluation and a reference do not have.
    fp8_recipe: Literal["tensorwise", "blockwise", "mxfp8"] = option(
        "tensorwise",
        role=Role.RUN,
        idle=NO_FP8,
        evaluation=True,
    )
    """One scale per tensor, per block of 128 values (1 x 128, weights 128 x 128), or per 32 values (`mxfp8`: Blackwell
    GPUs). Scales are those of the values at hand, not of earlier steps."""

    freeze_backbone: bool = option(False, role=Role.RUN, evaluation=True)
    """Train the LPC head only. The reference is the same model with z = 0, scored from the same hidden states: no
    second model, no backward pass through the backbone, no gradients or optimizer state for it."""

    cache_hidden_states: str | None = option(None, role=Role.RUN, idle=NOT_FROZEN, evaluation=True)
    """Folder for the hidden states of a frozen backbone: what it lacks of the training and validation data is computed
    before the first step, and training then runs the LPC head alone. An evaluation goes by it likewise."""

    lr: float = option(5e-7, range="[0, inf)", role=Role.RUN, idle=FROZEN_LR)
    """Peak learning rate."""

    min_lr: float = option(0.0, range="[0, inf)", role=Role.RUN, idle=CONSTANT_LR)
    """Learning rate at the last step. The rates of the LPC head fall by the same factor."""

    latent_lr: float = option(1e-2, range="[0, inf)", role=Role.RUN, idle=NO_NETWORKS)
    """Peak learning rate of the LPC head's networks: of their biases, and of a matrix with 256 inputs. Others get it in
    inverse proportion to their inputs, so that a step changes what they give by the same in any width. The
    prior network has a tenth of it."""

    codebook_lr: float = option(1.5e-2, range="[0, inf)", role=Role.RUN, idle=NO_LATENT)
    """Peak learning rate of the codes at hidden size 256, in the unit of `codebook_init_std`; of the vectors under
    `latent_mode: embedding`, and of what decodes a Gaussian latent. At other sizes it is in inverse proportion to the
    root of the hidden size, so that a step changes logits by the same in any width."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = option("cosine", role=Role.RUN)
    """Shape of the LR schedule after warmup."""

    lr_warmup_fraction: float = option(0.1, range="[0, 1]", role=Role.RUN)
    """Fraction of the steps over which the learning rate rises linearly from 0."""

    weight_decay: float = option(0.0, range="[0, inf)", role=Role.RUN)
    """Decoupled weight decay on matrices."""

    adam_beta1: float = option(0.9, range="[0, 1)", role=Role.RUN)
    """Decay rate of Adam's first moment."""

    adam_beta2: float = option(0.95, range="[0, 1)", role=Role.RUN)
    """Decay rate of Adam's second moment."""

    adam_eps: float = option(1e-8, range="(0, inf)", role=Role.RUN)
    """Added to the square root of the second moment."""

    clip_grad: float = option(1.0, range="[0, inf)", role=Role.RUN)
    """Maximum global gradient norm; 0 disables clipping."""

    max_bad_steps: int = option(3, range="[0, inf)", role=Role.RUN)
    """Consecutive steps with a non-finite loss or gradient (each is skipped) that are allowed before the run stops."""
