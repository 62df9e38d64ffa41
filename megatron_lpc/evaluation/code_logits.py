"""What each code adds to the logits of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lpc.model import unwrapped
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.setup import RunContext


@torch.no_grad()
def code_logits(context: RunContext, chunks: Sequence[nn.Module]) -> Tensor:
    """[K, V] fp64 on the CPU of every rank: z W^T of each code, of a model with codes, without vocabulary padding.

    Computed in the dtype of the LM head, as where it is added to the logits.

    Collectives: an all-gather over the tensor parallel group on the last stage; two broadcasts over the pipeline group.

    Args:
        chunks: this rank's model chunks.
    """
    groups = context.groups
    whole = None
    if groups.is_last_stage:
        model = unwrapped(chunks[-1])
        weight = model.lm_head_weight()
        shard = (model.latent_head.codes.to(weight.dtype) @ weight.T).contiguous()
        shards = [torch.empty_like(shard) for _ in range(groups.tp.size())]
        dist.all_gather(shards, shard, group=groups.tp)
        whole = torch.cat(shards, dim=1)[:, : model.real_vocab_size].double()
    return from_last_stage(whole, groups, context.platform.device).cpu()
