"""The model: megatron-core's GPT, portable layers, and the LPC head."""

from megatron_lpc.model.build import build_model, transformer_config, unwrapped, wrap_data_parallel
from megatron_lpc.model.latent_head import LatentOutput, LatentSource
from megatron_lpc.model.preference_model import LatentQuery, PairScores, PreferenceModel

__all__ = [
    "LatentOutput",
    "LatentQuery",
    "LatentSource",
    "PairScores",
    "PreferenceModel",
    "build_model",
    "transformer_config",
    "unwrapped",
    "wrap_data_parallel",
]
