"""The one place that knows CUDA with NCCL from a CPU with gloo, and the one that changes libraries.

Everything above asks the `Platform` it is given; nothing else in this project names a device or a backend. Process
groups come from `process_groups`, changes to libraries from `patches`.
It must be imported before megatron-core; `megatron_lpc` itself sees to that.
"""

from megatron_lpc.platform.device import Platform, select_platform
from megatron_lpc.platform.patches.known_warnings import silence_known_warnings
from megatron_lpc.platform.patches.transformer_engine_import import hide_transformer_engine_without_gpu

# Both concern the import of megatron-core, so they cannot wait for a function to be called.
hide_transformer_engine_without_gpu()
silence_known_warnings()

__all__ = ["Platform", "select_platform"]
