"""Which training steps run on a fake GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.data.micro_batches import IndexedPair, MicroBatchPlanner

STEPS = 2
"""The first one makes the optimizer's state and tells the names of metrics, the second is like all others."""


@dataclass(frozen=True)
class Case:
    """A run, and which of its ranks are pretended."""

    model: str = "dpo-lpc-untied"
    """Case of `layout_cases`."""
    layout: str = "tp2_sp"
    """Layout of `layout_cases`."""
    options: dict[str, Any] = field(default_factory=dict)
    world_size: int = 2
    ranks: tuple[int, ...] = (0,)
    """The last pipeline stage first: the others learn from it."""

    @property
    def is_pairwise(self) -> bool:
        """Whether `pair_logps` computes by the algorithm that waits for the lengths of responses."""
        return not self.model.startswith("dpo_recomputed")

    @property
    def micro_batches(self) -> int:
        """Of a step: four pairs, packed in one sequence or padded two by two."""
        return 1 if "pack_to" in self.options else 2


FOR_A_GPU: dict[str, Any] = {"device": "cuda", "kv_channels": 16, "num_layers": 2, "global_batch_size": 4}
"""What differs from `layout_cases` in every case."""
_PIPELINE: dict[str, Any] = {"layout": "pp2", "ranks": (1, 0)}
_FULL_WIDTH: dict[str, Any] = {"sliding_window": None}
_PACKED: dict[str, Any] = {"pack_to": 256, "micro_batch_size": 4, "usage_entropy_weight": 0.0}
_SHARED: dict[str, Any] = {"share_prompt": True}
_FULL_RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
_OVERLAPPED = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
_FROZEN = {"freeze_backbone": True, "latent_lr": 1e-3}

CASES: dict[str, Case] = {
    "padded": Case(options=_FULL_WIDTH),
    "shared": Case(options=_FULL_WIDTH | _SHARED),
    "packed": Case(options=_FULL_WIDTH | _PACKED),
    "packed-shared": Case(options=_FULL_WIDTH | _PACKED | _SHARED),
    "window": Case(options={"sliding_window": 64}),
    "window-packed-shared": Case(options={"sliding_window": 64} | _PACKED | _SHARED),
    "recompute-full": Case(options=_FULL_WIDTH | _FULL_RECOMPUTE),
    "recompute-selective": Case(options=_FULL_WIDTH | {"recompute_granularity": "selective"}),
    "recompute-algorithm": Case("dpo_recomputed-lpc-tied"),
    "none": Case("dpo-none-untied", options=_FULL_WIDTH),
    "continuous": Case("ipo-continuous-tied"),
    "straight-through": Case("dpo-straight_through-tied"),
    "without-reference": Case("simpo-lpc-tied"),
    "cached-reference": Case("dpo-lpc-tied", options={"reference": "precomputed", "reference_cache": "unused"}),
    "offloaded-reference": Case("dpo-lpc-tied", options={"reference_offload": True}),
    "experts": Case("dpo-lpc-experts"),
    "frozen": Case("dpo-lpc-tied", options=_FROZEN),
    "scaled-embeddings": Case("dpo-lpc-tied", options={"scale_embeddings": True}),
    "overlapped": Case("dpo-lpc-tied", options=_OVERLAPPED, world_size=4),
    "pipeline": Case("dpo-lpc-tied", **_PIPELINE),
    "pipeline-none": Case("dpo-none-untied", **_PIPELINE, options=_FULL_WIDTH),
    "pipeline-packed": Case("dpo-lpc-tied", **_PIPELINE, options=_PACKED),
    "pipeline-frozen": Case("dpo-lpc-tied", **_PIPELINE, options=_FROZEN),
    "pipeline-recompute": Case("dpo-lpc-tied", **_PIPELINE, options=_FULL_RECOMPUTE),
}


def micro_batches(planner: MicroBatchPlanner) -> list[list[IndexedPair]]:
    """Pairs of a rank's step, planned as a run plans them: four pairs of uneven length."""
    pairs = [EncodedPair(list(range(1, 3 + n)), list(range(5, 9 + 2 * n)), list(range(7, 12 + n))) for n in range(4)]
    lengths = np.array([[len(part) for part in (pair.prompt, pair.chosen, pair.rejected)] for pair in pairs])
    return [[IndexedPair(pairs[n], n, n) for n in group] for group in planner.plan(lengths)]
