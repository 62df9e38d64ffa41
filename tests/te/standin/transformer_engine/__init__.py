"""A stand-in for TransformerEngine 2.11.0 that computes with plain torch on a CPU.

Its signatures are those of the real sources (compared by `test_transformer_engine`), and every call is checked against
them: names of arguments, and their types. What the real modules assert of their inputs is asserted here too. It has
what megatron-core 0.16 imports and what this project's layers call, no more. Speed, kernels and rounding are not those
of TransformerEngine; its FP8 rounds as `tensorwise` does for every recipe.
"""

from transformer_engine import common, pytorch

__version__ = "2.11.0"
__all__ = ["common", "pytorch"]
