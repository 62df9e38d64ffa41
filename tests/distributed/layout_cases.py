"""The table: which parallel layouts are compared, and on which cases."""

from __future__ import annotations

from dataclasses import replace

import torch

from megatron_lpc.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair

LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "single": (1, {}),
    "tp2": (2, {"tensor_model_parallel_size": 2}),
    "tp2_sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
    "pp2_interleaved": (2, {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}),
    "dp2": (2, {}),
    "dp2_distributed_optimizer": (2, {"use_distributed_optimizer": True}),
    "dp2_overlapped": (
        2,
        {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "recompute_full": (1, {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}),
    "tp2_recompute_selective": (2, {"tensor_model_parallel_size": 2, "recompute_granularity": "selective"}),
    "tp2_pp2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    "everything": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
            "num_virtual_stages_per_pipeline_rank": 2,
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    ),
}
"""name -> processes, parallel options."""

_DPO = LossConfig(loss_type="dpo", label_smoothing=0.1, rpo_alpha=0.2, logps_chunk_size=8)
_LOSSES = {
    "dpo": replace(_DPO, logps_algorithm="pairwise"),
    "dpo_recomputed": replace(_DPO, logps_algorithm="recompute"),
    "dpo_exact": LossConfig(loss_type="dpo", rpo_alpha=0.2, logps_chunk_size=8),
    "ipo": LossConfig(loss_type="ipo"),
    "simpo": LossConfig(loss_type="simpo", beta=2.0),
    "sft": LossConfig(loss_type="sft"),
}
_LATENTS = {
    "lpc": LatentConfig(codebook_size=6, codebook_init_std=0.3, usage_entropy_weight=0.1, posterior_input="bilinear"),
    "context": LatentConfig(
        codebook_size=6,
        codebook_init_std=0.3,
        posterior_input="bilinear",
        posterior_context=1,
        swap_guidance_weight=0.5,
    ),
    "straight_through": LatentConfig(codebook_size=6, codebook_init_std=0.3, relaxation="straight_through"),
    "exact": LatentConfig(latent_inference="exact", codebook_size=6, codebook_init_std=0.3),
    "exact_episodes": LatentConfig(
        latent_inference="exact", codebook_size=6, codebook_init_std=0.3, posterior_context=1
    ),
    "continuous": LatentConfig(latent_mode="continuous", codebook_size=6, codebook_init_std=0.3),
    "embedding": LatentConfig(latent_mode="embedding", known_groups=["a", "b", "c"], group_dropout=0.4),
    "gaussian": LatentConfig(latent_mode="gaussian", latent_size=3, posterior_context=1, kl_free_bits=0.01),
    "none": LatentConfig(latent_mode="none"),
}
_MODEL = {
    "tied": {},
    "untied": {
        "untie_embeddings_and_output_weights": True,
        "qk_layernorm": True,
        "add_qkv_bias": True,
        "sliding_window": 5,
    },
    "experts": {"num_experts": 4},
    "varied": {
        "norm_position": "both",
        "qk_layernorm": True,
        "qk_layernorm_scope": "projection",
        "no_rope_freq": [4],
        "sliding_window": 5,
        "window_attn_skip_freq": [0, 1, 1, 0],
        "rope_local_base_freq": 100,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
    },
}
_FEW_LOSSES = {"experts": ("dpo", "simpo"), "varied": ("dpo",)}
"""Models that are compared under these losses only."""
_FEW_LATENTS = {
    "context": (("dpo", "untied"),),
    "embedding": (("dpo", "tied"), ("ipo", "untied")),
    "gaussian": (("dpo", "tied"), ("simpo", "untied")),
}
"""Latents that are compared under these losses and models only."""
_EXACT = {
    "exact": (("dpo_exact", "tied"), ("dpo_exact", "untied"), ("simpo", "tied")),
    "exact_episodes": (("dpo_exact", "tied"),),
}
"""Losses and models under which exact inference is compared."""

CASES: dict[str, tuple[str, str, str]] = {
    f"{loss}-{latent}-{model}": (loss, latent, model)
    for loss in _LOSSES
    for latent in _LATENTS
    for model in _MODEL
    if (loss != "sft" or latent == "none") and (loss != "dpo_recomputed" or latent == "lpc")
    if latent not in _FEW_LATENTS or (loss, model) in _FEW_LATENTS[latent]
    if model not in _FEW_LOSSES or (loss in _FEW_LOSSES[model] and latent == "lpc")
    if ((loss, model) in _EXACT[latent] if latent in _EXACT else loss != "dpo_exact")
}


def layout_config(layout: str, case: str) -> Config:
    """Options of one cell of the table.

    The vocabulary of 101 is padded to 104, so that one rank of two holds padded token ids.
    """
    loss, latent, model = CASES[case]
    parallel = ParallelConfig(device="cpu", **LAYOUTS[layout][1])
    if model == "experts" and parallel.tensor_model_parallel_size > 1:
        parallel = replace(parallel, sequence_parallel=True)  # Which experts need.
    return Config(
        model=ModelConfig(
            num_layers=4,
            hidden_size=32,
            ffn_hidden_size=48,
            num_attention_heads=4,
            num_query_groups=2,
            vocab_size=101,
            make_vocab_size_divisible_by=8,
            max_position_embeddings=64,
            init_method_std=0.2,
            **_MODEL[model],
        ),
        latent=_LATENTS[latent],
        loss=_LOSSES[loss],
        data=DataConfig(train_data=["unused.jsonl"], tokenizer_model="unused.model", max_length=64),
        parallel=parallel,
        training=TrainingConfig(micro_batch_size=2, global_batch_size=8, seed=3),
    )


FROZEN_CASES: dict[str, tuple[str, str]] = {
    f"frozen-{case}{packing and '-'}{packing}": (case, packing)
    for case, packing in (
        ("dpo-lpc-tied", ""),
        ("ipo-straight_through-untied", ""),
        ("simpo-lpc-tied", ""),
        ("dpo-lpc-experts", ""),
        ("dpo-lpc-untied", "packed-shared"),
        ("dpo-embedding-tied", ""),
        ("dpo-gaussian-tied", ""),
    )
}
"""name -> case, packing: only the LPC head trains, with the same losses and gradients as in the case."""


def frozen_config(layout: str, case: str) -> Config:
    """Options of a frozen backbone, without those that have no effect on one."""
    config = layout_config(layout, FROZEN_CASES[case][0])
    parallel = replace(config.parallel, overlap_grad_reduce=False, overlap_param_gather=False)
    parallel = replace(parallel, recompute_granularity=None, recompute_method=None, recompute_num_layers=None)
    training = replace(config.training, freeze_backbone=True, latent_lr=1e-3)
    return replace(config, parallel=parallel, training=training)


START_CASES: dict[str, tuple[LatentConfig, bool]] = {
    "start-none": (LatentConfig(latent_mode="none"), False),
    "start-lpc": (LatentConfig(codebook_size=6, codebook_init_std=0.0), False),
    "start-none-bf16": (LatentConfig(latent_mode="none"), True),
    "start-lpc-bf16": (LatentConfig(codebook_size=6, codebook_init_std=0.0), True),
}
"""name -> latent, bf16: plain dpo where the policy is still its reference."""


def start_config(layout: str, case: str) -> Config:
    """Options of a run that has not yet made its first step."""
    latent, bf16 = START_CASES[case]
    config = layout_config(layout, "dpo-none-tied")
    return replace(
        config, latent=latent, loss=LossConfig(loss_type="dpo"), training=replace(config.training, bf16=bf16)
    )


PACKINGS: dict[str, dict[str, object]] = {
    "separate": {},
    "shared": {"share_prompt": True},
    "packed": {"pack_to": 60},
    "packed-shared": {"pack_to": 48, "share_prompt": True},
}
"""How the pairs of a micro-batch are laid out in sequences."""

PACKING_CASES: dict[str, tuple[str, str]] = {
    f"{case}-{packing}": (case, packing)
    for case in (
        "dpo-lpc-untied",
        "simpo-straight_through-tied",
        "ipo-none-untied",
        "dpo-lpc-varied",
        "dpo_exact-exact-untied",
    )
    for packing in ("shared", "packed", "packed-shared")
} | {f"dpo-context-untied-{packing}": ("dpo-context-untied", packing) for packing in ("shared", "packed-shared")}
"""name -> case, packing: the same numbers as those of the case."""


def pair_batches(config: Config, packing: str = "separate", seed: int = 7) -> list[PairBatch]:
    """Four micro-batches of two pairs, each of its own length, a multiple of 2 for sequence parallelism."""
    generator = torch.Generator().manual_seed(seed)

    def text(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return torch.randint(1, 101, (length,), generator=generator).tolist()

    batches = []
    for number, longest in enumerate((7, 11, 5, 9)):
        pairs = [
            EncodedPair(text(2, 5), text(3, longest), text(3, longest)) for _ in range(config.training.micro_batch_size)
        ]
        samples = range(number * len(pairs), (number + 1) * len(pairs))
        batch = collate(pairs, samples, samples, pad_id=0, pad_to_multiple=2, **PACKINGS[packing])
        batches.append(replace(batch, group_ids=batch.sample_ids % 4))
    if config.parallel.num_virtual_stages_per_pipeline_rank:
        longest = max(batch.tokens.size(1) for batch in batches)
        return [batch.padded_to(longest, pad_id=0) for batch in batches]
    return batches
