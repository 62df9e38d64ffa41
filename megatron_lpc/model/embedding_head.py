"""A learned vector per known group (P-DPO, arXiv 2402.05133, "individualized preferences" with one soft token).

P-DPO puts the vector before the prompt, as a soft token; here it is added where every latent is added, so that modes
differ in what they know of an annotator and in nothing else.

Shape legend: B pairs, G known groups, H hidden size.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_lpc.config import LatentConfig
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.counter_noise import uniform_noise
from megatron_lpc.model.head_parts import new_code_unit, stack_latents
from megatron_lpc.model.latent_output import LatentOutput, LatentSource


class EmbeddingHead(MegatronModule):
    """z is the generic vector, plus the offset of the pair's group where that is known (P-DPO's e_0 + o_i).

    All vectors start at 0: the policy without a latent.
    """

    def __init__(self, config: TransformerConfig, latent: LatentConfig, seed: int) -> None:
        super().__init__(config)
        self.latent = latent
        self.seed = seed
        self.vectors = nn.Parameter(torch.zeros(1 + len(latent.known_groups), config.hidden_size))
        """[1 + G, H] the generic vector, then the offset of each group, in the unit of the hidden states."""
        self.register_buffer("code_unit", new_code_unit())

    def forward(
        self,
        h_x: Tensor,
        h_w: Tensor,
        h_l: Tensor,
        sample_ids: Tensor,
        state: LatentState,
        sources: tuple[LatentSource, ...],
        mixture: Tensor | None,
        group_ids: Tensor | None = None,
    ) -> LatentOutput:
        """Latents of B pairs.

        Args:
            h_x, h_w, h_l, state: not read but for their number, dtype and device; `LatentHead` takes them.
            sample_ids: [B] int64 counters of the noise that drops groups.
            sources: which latents to return, in this order. `train`: as `group`, but some groups are dropped
                (`group_dropout`). `group`: that of the pair's group. `prior`: generic. `mixture`: the vector of this
                name. `none`: zero.
            mixture: [B, H] vectors in the unit of the hidden states, or several as `PairBatch` has them, needed by the
                source of this name.
            group_ids: [B] int64 as `PairBatch` has them, needed by `train` and `group`.

        Raises:
            ValueError: a source is requested that the mode does not have, or without its argument.
        """

        def of_groups(numbers: Tensor) -> Tensor:
            return self.vectors[0] + self.vectors[numbers] * (numbers > 0)[:, None]

        def vectors_of(source: LatentSource) -> Tensor:
            """[B, H] in the unit of the hidden states, or several."""
            if source == "none":
                return torch.zeros_like(h_x[:1], dtype=self.vectors.dtype)
            if source == "prior":
                return self.vectors[0].expand(len(h_x), -1)
            if source == "mixture":
                if mixture is None:
                    raise ValueError("latent source `mixture` needs PairBatch.mixture")
                return mixture.to(self.vectors.dtype)
            if source not in ("train", "group"):
                raise ValueError(f"latent mode `embedding` has no {source} latent")
            if group_ids is None:
                raise ValueError(f"latent source `{source}` needs PairBatch.group_ids")
            return of_groups(self._some_dropped(group_ids, sample_ids) if source == "train" else group_ids)

        return LatentOutput(z=self.code_unit * stack_latents([vectors_of(source) for source in sources]))

    def _some_dropped(self, group_ids: Tensor, sample_ids: Tensor) -> Tensor:
        """[B] the group ids, 0 for those that are dropped."""
        is_kept = uniform_noise(sample_ids, 1, self.seed)[:, 0] >= self.latent.group_dropout
        return group_ids * is_kept
