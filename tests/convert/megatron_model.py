"""A trained model with its head, as the training engine computes it, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lpc.config import LatentConfig
from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.logits import logits_config
from megatron_lpc.losses.schedules import LatentState


@dataclass
class Megatron:
    """The trained model itself, in this process."""

    model: Any

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states [S, H] of one sequence [S]."""
        return self.model.hidden_states(tokens[None])[:, 0]

    def z(self, prompt: Tensor, weights: Tensor | None) -> Tensor:
        """[H], by the mixture weights [K] given, or by the model's own prior."""
        h_x = self.hidden(prompt)[-1:]
        source = "prior" if weights is None else "mixture"
        mixture = None if weights is None else weights[None]
        state = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
        return self.model.latent_head(h_x, h_x, h_x, torch.zeros(1, dtype=torch.long), state, (source,), mixture).z[
            0, 0
        ]

    def prior(self, prompt: Tensor) -> Tensor:
        """Probabilities [K] of the codes."""
        from megatron_lpc.model.head_parts import normalized

        return self.model.latent_head.prior(normalized(self.hidden(prompt)[-1])).softmax(-1)

    def logps(self, tokens: Tensor, z: Tensor | float) -> Tensor:
        """[S, V] with z at every position."""
        logits = self.model.cap((self.hidden(tokens) + z) @ self.model.lm_head_weight().t())
        return logits[:, : self.model.real_vocab_size].log_softmax(-1)


@contextmanager
def megatron_of(run: Path) -> Iterator[Megatron]:
    """The model of the latest checkpoint, without gradients."""
    from megatron_lpc.model import build_model, unwrapped
    from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
    from megatron_lpc.training.checkpoint_tensors import load_weights
    from megatron_lpc.training.setup import start_distributed, stop_distributed

    described = describe_megatron(run)
    config = logits_config(described.model)
    assert described.latent is not None
    context = start_distributed(config)
    chunks = build_model(config, context.platform, context.groups, LatentConfig(**described.latent))
    load_weights(chunks, resolve_checkpoint(run), groups=context.groups, latent_head=True, config=config)
    with torch.no_grad():
        yield Megatron(unwrapped(chunks[0]).eval())
    stop_distributed()
