"""Settings of a language model with Latent Preference Coding (arXiv 2505.04993)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_LATENT_DEFAULTS = {
    "latent_mode": "lpc",
    "latent_inference": "amortized",
    "codebook_size": 64,
    "latent_mlp_hidden_size": None,
    "posterior_input": "difference",
    "posterior_context": 0,
}
_TAKEN_FROM_BACKBONE = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


class LPCConfig(PreTrainedConfig):
    """config.json of a backbone of any family with an LPC head."""

    model_type = "lpc"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the form that transformers reads)

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        latent: dict[str, Any] | None = None,
        code_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            text_config: config.json of the backbone; Llama's defaults when unset.
            latent: options of the head and of its training, as the training run had them.
            code_names: one name for each of the K codes.
        """
        if not isinstance(text_config, PreTrainedConfig):
            text_config = AutoConfig.for_model(**{"model_type": "llama"} | (text_config or {}))
        self.text_config = text_config
        self.latent: dict[str, Any] = _LATENT_DEFAULTS | (latent or {})
        self.code_names = code_names
        for name in _TAKEN_FROM_BACKBONE:
            kwargs.setdefault(name, getattr(text_config, name, None))
        super().__init__(**kwargs)
