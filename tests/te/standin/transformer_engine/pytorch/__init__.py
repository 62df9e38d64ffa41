from transformer_engine.common import recipe
from transformer_engine.pytorch import ops
from transformer_engine.pytorch.attention import DotProductAttention
from transformer_engine.pytorch.distributed import CudaRNGStatesTracker, checkpoint
from transformer_engine.pytorch.module import GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm
from transformer_engine.pytorch.quantization import fp8_autocast, fp8_model_init

__all__ = [
    "CudaRNGStatesTracker",
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "checkpoint",
    "fp8_autocast",
    "fp8_model_init",
    "ops",
    "recipe",
]
