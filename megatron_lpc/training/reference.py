"""Log-probs under the frozen reference policy: from a copy in the same layout, or from a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentState
from megatron_lpc.model import LatentQuery, build_model
from megatron_lpc.platform import Platform
from megatron_lpc.training.pipeline import score_pass

PLAIN = LatentQuery(sources=("none",), state=LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0))


class Reference(Protocol):
    """Anything that can fill in `PairBatch.reference_logps`."""

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        """The micro-batches with reference log-probs where they are needed: on the last pipeline stage."""
        ...


class NoReference:
    """For objectives without a reference (simpo, sft)."""

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        return batches


class OnlineReference:
    """A frozen model in the policy's layout; one forward-only pass through the same pipeline for all micro-batches of a step.

    The log-probs stay where they arise, on the last stage. The reference is never conditioned on a latent.
    """

    def __init__(self, config: Config, platform: Platform) -> None:
        """Fresh weights; load a checkpoint into `chunks` unless the policy starts from fresh weights as well.

        Raises:
            ConfigError: offload is asked for where host memory is the device's memory.
        """
        if config.loss.reference_offload and not platform.is_cuda:
            raise ConfigError("--reference-offload: a CPU run keeps the reference in host memory already; leave it out")
        self.device, self.offload = platform.device, config.loss.reference_offload
        self.chunks = build_model(config, platform, replace(config.latent, latent_mode="none"))
        for chunk in self.chunks:
            chunk.requires_grad_(False)

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        with self._on_device():
            scores = score_pass(self.chunks, batches, PLAIN)
        if not scores:
            return batches
        return [replace(batch, reference_logps=score.logps[0]) for batch, score in zip(batches, scores, strict=True)]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if self.offload:
            self._move(self.device)
        yield
        if self.offload:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for chunk in self.chunks:
            chunk.to(device)


class CachedReference:
    """Log-probs computed beforehand, found by the row of a pair."""

    def __init__(self, logps: Tensor) -> None:
        """`logps`: [rows, 2] fp32 chosen and rejected, on the CPU."""
        self.logps = logps

    def attach(self, batches: list[PairBatch]) -> list[PairBatch]:
        return [replace(batch, reference_logps=self._of(batch)) for batch in batches]

    def _of(self, batch: PairBatch) -> Tensor:
        return self.logps[batch.example_index.cpu()].T.reshape(-1).to(batch.example_index.device, non_blocking=True)
