"""megatron-core on a CPU: real processes, real collectives, no GPU.

megatron-core 0.16 names CUDA directly in a few dozen places. The patches below answer for it; each says which places
it stands for. They are applied once, only when the CPU platform is selected, and cost nothing in the inner loops.
"""

from __future__ import annotations

from megatron_lpc.platform.patches.cuda_device_literals import redirect_cuda_device_literals
from megatron_lpc.platform.patches.cuda_generator import redirect_cuda_generator
from megatron_lpc.platform.patches.cuda_runtime import redirect_cuda_runtime
from megatron_lpc.platform.patches.cuda_tensor_types import accept_cpu_tensor_types


def redirect_megatron_to_cpu() -> None:
    """Replace every CUDA call that megatron-core makes while training. It cannot be undone; later calls do nothing."""
    # Those of torch first: the others import megatron-core.
    redirect_cuda_device_literals()
    redirect_cuda_runtime()
    redirect_cuda_generator()
    accept_cpu_tensor_types()
