"""The parameter-matched control: a latent of the prompt alone.

Shape legend: B pairs, H hidden size.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_lpc.config import LatentConfig
from megatron_lpc.config.latent_head_sizes import latent_head_sizes
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.model.head_parts import mlp, new_code_unit, normalized
from megatron_lpc.model.latent_output import LatentOutput, LatentSource


class ContinuousHead(MegatronModule):
    """Control with the parameters of a `LatentHead` and none of its ideas: an MLP of the prompt gives z.

    It has no codes, no noise and no KL.
    """

    def __init__(self, config: TransformerConfig, latent: LatentConfig) -> None:
        super().__init__(config)
        sizes = latent_head_sizes(latent, config.hidden_size)
        self.network = mlp(sizes.hidden_size, sizes.control_mlp_hidden_size, sizes.hidden_size)
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
        """The same latent for `train` and `prior`, zero for `none`.

        Args:
            h_x: [B, H] hidden states at the last token of the prompt.
            h_w, h_l, sample_ids, state, mixture, group_ids: not read; they are here because `LatentHead` takes them.
            sources: which latents to return, in this order.

        Raises:
            ValueError: another source is requested.
        """
        unknown = set(sources) - {"train", "prior", "none"}
        if unknown:
            raise ValueError(f"latent mode `continuous` has no {', '.join(sorted(unknown))} latent")
        z = self.code_unit * self.network(normalized(h_x))
        return LatentOutput(z=torch.stack([torch.zeros_like(z) if source == "none" else z for source in sources]))
