"""Log-probs under the frozen reference policy: from a copy in the same parallel layout, from a cache, or, where the
policy's backbone is frozen too, from the policy itself without its latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from megatron_lpc.config import ConfigError
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.losses import LatentState, uses_reference
from megatron_lpc.model import FreshWeights, LatentQuery, PairScores, build_model, unwrapped
from megatron_lpc.training.checkpoint_tensors import load_weights
from megatron_lpc.training.checkpoint_verification import open_checkpoint
from megatron_lpc.training.offload import OffloadedWeights
from megatron_lpc.training.pipeline import score_pass
from megatron_lpc.training.reference_cache import load_reference_cache, weights_fingerprint
from megatron_lpc.training.setup import RunContext

_WITHOUT_LATENT = LatentQuery(sources=("none",), state=LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0))


class Reference(Protocol):
    """Anything that can fill in `PairBatch.reference_logps`."""

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        """The micro-batches with reference log-probs where they are needed: on the last pipeline stage."""
        ...


class NoReference:
    """For objectives without a reference (simpo, sft)."""

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        return batches


class ZeroLatentReference:
    """The policy with z = 0, for a frozen backbone: whoever scores pairs scores them under one more latent."""

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        return batches


def split_reference(batch: PairBatch, scores: PairScores) -> tuple[PairBatch, PairScores]:
    """A micro-batch with its reference log-probs, which are the last latent of its scores, and the other latents."""
    return replace(batch, reference_logps=scores.logps[-1]), replace(scores, logps=scores.logps[:-1])


class OnlineReference:
    """A frozen model in the policy's parallel layout.

    One forward-only pass through the same pipeline scores all micro-batches of a step. The log-probs stay where they
    are computed, on the last stage. The reference is never conditioned on a latent.
    """

    def __init__(self, context: RunContext, fresh: FreshWeights = "all") -> None:
        """Build the model into `chunks`.

        Args:
            fresh: `none` where the caller gives `chunks` all their weights; drawn, they are those of a fresh policy.

        Raises:
            ConfigError: offload is asked for where host memory is the device's memory.
        """
        config, platform = context.config, context.platform
        self._device = platform.device
        self._offloads = config.loss.reference_offload
        self._offloaded: OffloadedWeights | None = None
        if self._offloads and not platform.is_cuda:
            raise ConfigError("--reference-offload: a CPU run keeps the reference in host memory already; leave it out")
        without_head = replace(config.latent, latent_mode="none")
        self.chunks = build_model(config, platform, context.groups, without_head, fresh)
        for chunk in self.chunks:
            chunk.requires_grad_(False)

    def weights_are_final(self) -> None:
        """The chunks have their weights: with `reference_offload` they leave the device until a pass needs them."""
        if self._offloads:
            weights = [parameter for chunk in self.chunks for parameter in chunk.parameters()]
            self._offloaded = OffloadedWeights(weights, self._device)

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        """Collectives: the pipeline's sends and receives over the pipeline group."""
        with self._offloaded.on_device() if self._offloaded else nullcontext():
            scores = score_pass(self.chunks, batches, _WITHOUT_LATENT)
        if not scores:
            return batches
        return [replace(batch, reference_logps=score.logps[0]) for batch, score in zip(batches, scores, strict=True)]


class CachedReference:
    """Log-probs computed beforehand, found by the example index of a pair."""

    def __init__(self, logps: Tensor) -> None:
        """`logps`: [P, 2] fp32 log-probs of chosen and rejected of all P pairs of the data set, on the host."""
        self.logps = logps

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        return [replace(batch, reference_logps=self._of(batch)) for batch in batches]

    def _of(self, batch: PairBatch) -> Tensor:
        """[2B], all chosen before all rejected."""
        logps = self.logps[batch.example_index].T.reshape(-1)
        return logps.pin_memory().to(batch.tokens.device, non_blocking=True) if batch.tokens.is_cuda else logps


def online_reference(context: RunContext, untrained: Sequence[nn.Module] | None = None) -> OnlineReference:
    """The reference model with its weights: `reference_load`, or else what the policy starts from.

    That is `pretrained_checkpoint`, or the fresh weights, which are a function of the seed. So a resumed run has the
    same reference.

    Collectives: those of `load_weights`, where a checkpoint is read.

    Args:
        untrained: the policy before its first step, whose weights are copied where they are the reference's; None
            where there is no such policy.

    Raises:
        ConfigError: the checkpoint does not fit the model.
    """
    config = context.config
    pretrained = config.checkpoint.pretrained_checkpoint
    start = config.loss.reference_load or pretrained
    source = untrained if start == pretrained else None
    reference = OnlineReference(context, "none" if start or source is not None else "all")
    if source is not None:
        copy_backbone(source, reference.chunks)
    elif start:
        load_weights(
            reference.chunks, open_checkpoint(start, context), groups=context.groups, latent_head=False, config=config
        )
    reference.weights_are_final()
    return reference


@torch.no_grad()
def copy_backbone(policy: Sequence[nn.Module], reference: Sequence[nn.Module]) -> None:
    """Give a reference the weights of a policy in the same parallel layout, on the device and chunk by chunk."""
    for source, target in zip(policy, reference, strict=True):
        weights = dict(unwrapped(source).named_parameters())
        for name, parameter in unwrapped(target).named_parameters():
            parameter.copy_(weights[name])


def build_references(
    context: RunContext, untrained: Sequence[nn.Module] | None, datasets: Sequence[tuple[str, PairDataset | None]]
) -> list[Reference]:
    """Where the objective's reference log-probs of each data set come from.

    Collectives: those of `online_reference`; with a cache, those of `weights_fingerprint`.

    Args:
        untrained: as `online_reference` takes it; None in a run that resumes.
        datasets: all that will be scored, each with its name; None for a stream, which takes only an online reference.

    Raises:
        ConfigError: the cache does not fit these data or these weights.
    """
    loss = context.config.loss
    if not uses_reference(loss):
        return [NoReference()] * len(datasets)
    if context.config.training.freeze_backbone:
        return [ZeroLatentReference()] * len(datasets)
    if loss.reference == "online":
        return [online_reference(context, untrained)] * len(datasets)
    assert loss.reference_cache is not None
    if untrained is None or loss.reference_load:
        weights = weights_fingerprint(online_reference(context).chunks)
    else:
        weights = weights_fingerprint(untrained)
    references: list[Reference] = []
    for name, data in datasets:
        assert data is not None
        references.append(CachedReference(load_reference_cache(loss.reference_cache, name, data.fingerprint, weights)))
    return references
