"""FlashAttention-4 as the backend of FlexAttention: what it needs of the machine.

torch and FlashAttention-4 would refuse the rest at the first micro-batch, the latter by assertions.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch

from megatron_lpc.config import ConfigError

QUERY_BLOCKS = {9: 128, 10: 256, 11: 256}
"""Major compute capability -> queries of a block in the block mask.

The forward kernel treats two tiles of 128 queries at once on Blackwell. Other GPUs have no block masks."""


def flash_query_block(channels: int) -> int:
    """Queries of a block in the block mask, as FlashAttention-4's kernels for this GPU take them.

    Args:
        channels: of a head.

    Raises:
        ConfigError: its package is not installed, or its kernels do not take this GPU or such heads there; every
            problem on a line of its own.
    """
    capability = torch.cuda.get_device_capability()
    problems = list(_problems(channels, *capability))
    if problems:
        raise ConfigError("\n".join(problems))
    return QUERY_BLOCKS[capability[0]]


def _problems(channels: int, major: int, minor: int) -> Iterator[str]:
    flag = "--flex-attention-backend flash"
    if not _is_installed():
        yield f"{flag}: Python finds no flash_attn.cute; install the package flash-attn-4, or set it to triton"
    if major not in QUERY_BLOCKS:
        known = ", ".join(f"{number}.x" for number in QUERY_BLOCKS)
        yield (
            f"{flag}: this GPU has compute capability {major}.{minor}, and FlashAttention-4 has block masks for "
            f"{known} only; set it to triton"
        )
    # `_validate_head_dims` of flash-attn-4 4.0; all fused attention takes multiples of 8 only.
    elif channels > 256 or (major > 9 and 128 < channels < 256):
        limit = "256" if major == 9 else "128, or exactly 256"
        yield (
            f"{flag}: attention heads have {channels} channels, and FlashAttention-4 takes up to {limit} on compute "
            f"capability {major}.{minor}; set it to triton"
        )


def _is_installed() -> bool:
    """As torch finds out."""
    try:
        return find_spec("flash_attn.cute") is not None
    except ImportError:
        return False
