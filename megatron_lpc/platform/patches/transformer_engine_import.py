"""TransformerEngine on a machine without a GPU."""

from __future__ import annotations

import sys

import torch

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch


@patch(
    *MEGATRON_CORE,
    symptom="Importing megatron-core fails with the RuntimeError that TransformerEngine raises without a GPU.",
)
def hide_transformer_engine_without_gpu() -> None:
    """Make `import transformer_engine` an ImportError, which is the only exception that megatron-core handles.

    Must come before the first import of megatron-core. Does nothing where there is a GPU, or where the module is
    imported already.
    """
    if not torch.cuda.is_available():
        sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]
