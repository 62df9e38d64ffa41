"""The router of experts without TransformerEngine."""

from __future__ import annotations

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch


@patch(*MEGATRON_CORE, symptom="The router of experts raises NameError: name 'te_general_gemm' is not defined.")
def define_te_general_gemm() -> None:
    """Set `moe_utils.te_general_gemm` to None where TransformerEngine is absent.

    megatron-core asks whether it is None, but defines it only where TransformerEngine can be imported.
    """
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
