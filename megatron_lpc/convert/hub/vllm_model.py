"""The backbone as a vLLM model that shows its final hidden states, in which the prior reads the latent of a prompt.

vLLM calls `register` in each of its processes, by an entry point of `vllm.general_plugins` beside this package. It
registers, in place of the stock class of the backbone's architecture, a subclass that computes the same and keeps the
hidden states that it has last computed logits of, for the logits processor of the same step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm
from torch import Tensor
from vllm import ModelRegistry

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_stock: dict[str, Any] = {}
"""Name of a class of this module -> what vLLM had registered before."""
_sampled: list[Tensor] = []
"""At most one: [B, H] hidden states of the rows that logits were last computed of."""


def register() -> None:
    """Register the model of the export that LPC_EXPORT names. Without this variable, nothing.

    Raises:
        ValueError: the variable names no export.
    """
    folder = os.environ.get("LPC_EXPORT")
    if not folder or _stock:
        return
    file = Path(folder) / "config.json"
    if not file.exists():
        raise ValueError(f"{file}: is missing; LPC_EXPORT names the folder of `convert_hf.py export --for-serving`")
    for architecture in json.loads(file.read_text(encoding="utf-8"))["architectures"]:
        if architecture in ModelRegistry.models:
            # vLLM keeps what it knows of a class in a cache, by this name.
            name = f"{architecture}_{vllm.__version__}".replace(".", "_")
            _stock[name] = ModelRegistry.models[architecture]
            ModelRegistry.register_model(architecture, f"{__name__}:{name}")


def is_registered() -> bool:
    """Whether a model that shows its hidden states is known in this process."""
    return bool(_stock)


def check_served(config: VllmConfig) -> None:
    """Refuse to serve another model than that of LPC_EXPORT, whose hidden states are not shown.

    Raises:
        ValueError: naming its architecture.
    """
    model_class, architecture = ModelRegistry.resolve_model_cls(config.model_config.architectures, config.model_config)
    if not issubclass(model_class, _ShowsHiddenStates):
        raise ValueError(f"LPC_EXPORT names another model than the one served, a {architecture}")


def sampled_hidden_states(rows: int) -> Tensor:
    """[rows, H] hidden states, after the final norm, behind the logits of this step.

    Raises:
        RuntimeError: the logits are not those of the model of this process, as with the pipeline parallelism of an
            external launcher.
    """
    if not _sampled or len(_sampled[0]) != rows:
        raise RuntimeError("lpc_latent: the prior has no hidden states of these logits; serve without `mean`, `argmax`")
    return _sampled[0]


class _ShowsHiddenStates:
    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """hidden_states: [B, H], the row of each request's last token."""
        _sampled[:] = [hidden_states]
        return super().compute_logits(hidden_states, *args, **kwargs)  # type: ignore[misc]


def __getattr__(name: str) -> type:
    """The subclass of a stock class, made when vLLM asks for it, for to import the stock class may start CUDA."""
    if name not in _stock:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    stock = _stock[name].load_model_cls()
    # vLLM knows some classes by their name.
    model_class = type(stock.__name__, (_ShowsHiddenStates, stock), {"__module__": __name__})
    globals()[name] = model_class
    return model_class
