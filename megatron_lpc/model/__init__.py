"""The model: megatron-core's GPT, portable layers, and the LPC head."""

from megatron_lpc.model.build import build_model, unwrapped
from megatron_lpc.model.data_parallel import finalize_head_gradients, wrap_data_parallel
from megatron_lpc.model.initialize import FreshWeights
from megatron_lpc.model.latent_output import LatentOutput, LatentSource
from megatron_lpc.model.pair_scores import LatentQuery, PairScores
from megatron_lpc.model.preference_model import PreferenceModel
from megatron_lpc.model.transformer_config import transformer_config

__all__ = [
    "FreshWeights",
    "LatentOutput",
    "LatentQuery",
    "LatentSource",
    "PairScores",
    "PreferenceModel",
    "build_model",
    "finalize_head_gradients",
    "transformer_config",
    "unwrapped",
    "wrap_data_parallel",
]
