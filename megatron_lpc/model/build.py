"""From options to this rank's model chunks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from megatron.core.transformer.module import Float16Module
from torch import nn

from megatron_lpc.config import Config, ConfigError, LatentConfig, ModelConfig, padded_vocab_size
from megatron_lpc.model.build_head import build_latent_head
from megatron_lpc.model.code_unit import set_code_unit
from megatron_lpc.model.initialize import FreshWeights, initialize_parameters
from megatron_lpc.model.layer_spec import add_to_main_grad, block_spec
from megatron_lpc.model.preference_model import PreferenceModel
from megatron_lpc.model.transformer_config import transformer_config
from megatron_lpc.platform import Platform
from megatron_lpc.platform.process_groups import ProcessGroups


def build_model(
    config: Config,
    platform: Platform,
    groups: ProcessGroups,
    latent: LatentConfig,
    fresh: FreshWeights = "all",
) -> list[nn.Module]:
    """This rank's model chunks (one per virtual pipeline stage), on its device, in the training precision.

    Fresh weights are a function of the seed, of their parameter's name and of their place in it, the same in every
    parallel layout.

    Args:
        latent: which head the last stage carries; a reference model is built with `latent_mode` none.
        fresh: which weights to draw. The others hold whatever was in memory, so load or copy all of them.

    Raises:
        ConfigError: all weights are fresh, and the model has padded query groups, which are zeros.
    """
    model = config.model
    if fresh == "all" and model.padded_query_groups:
        raise ConfigError(
            f"--padded-query-groups {model.padded_query_groups}: counts zeros of an imported model, and this run "
            "starts from fresh weights; set --pretrained-checkpoint, or leave it at 0"
        )
    assert model.vocab_size is not None
    core_config = transformer_config(config, platform)
    num_chunks = config.parallel.num_virtual_stages_per_pipeline_rank or 1
    chunks: list[nn.Module] = []
    for index in range(num_chunks):
        vp_stage = index if config.parallel.num_virtual_stages_per_pipeline_rank else None
        chunk: nn.Module = PreferenceModel(
            config=core_config,
            transformer_layer_spec=block_spec(model, core_config, vp_stage, groups),
            vocab_size=padded_vocab_size(config, model.vocab_size),
            real_vocab_size=model.vocab_size,
            logps_chunk_size=config.loss.logps_chunk_size,
            latent_head=partial(build_latent_head, core_config, latent, config.training.seed),
            pre_process=groups.is_first_stage and index == 0,
            post_process=groups.is_last_stage and index == num_chunks - 1,
            vp_stage=vp_stage,
            pg_collection=groups.core,
            **_embeddings(model),
        )
        if model.transformer_impl == "transformer_engine":
            add_to_main_grad(chunk)
        initialize_parameters(chunk, model, latent, config.training.seed, fresh)
        if fresh == "all":
            set_code_unit(chunk)
        chunk.to(platform.device)
        chunks.append(Float16Module(core_config, chunk) if config.training.bf16 else chunk)
    return chunks


def _embeddings(model: ModelConfig) -> dict[str, Any]:
    """Arguments of `PreferenceModel` that concern embeddings, positions and logits."""
    return {
        "embedding_scale": math.sqrt(model.hidden_size) if model.scale_embeddings else None,
        "logit_softcap": model.final_logit_softcapping,
        "local_rotary_base": model.rope_local_base_freq,
        "packs_sequences": model.transformer_impl == "transformer_engine",
        "share_embeddings_and_output_weights": not model.untie_embeddings_and_output_weights,
        "max_sequence_length": model.max_position_embeddings,
        "position_embedding_type": "rope",
        "rotary_percent": model.rotary_percent,
        "rotary_base": model.rotary_base,
        "rope_scaling": model.use_rope_scaling,
        "rope_scaling_factor": model.rope_scaling_factor,
        "seq_len_interpolation_factor": model.rotary_seq_len_interpolation_factor,
    }


def unwrapped(chunk: nn.Module) -> Any:
    """The `PreferenceModel` within its precision and data parallel wrappers."""
    while isinstance(module := getattr(chunk, "module", None), nn.Module):
        chunk = module
    return chunk
