"""Settings of a language model with Latent Preference Coding (arXiv 2505.04993)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class LPCConfig(PreTrainedConfig):
    """`text_config` is the config.json of the language model underneath, of whatever family."""

    model_type = "lpc"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        latent: dict[str, Any] | None = None,
        code_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            text_config: settings of the language model; Llama's defaults when unset.
            latent: options of the head and of its training, as the training run had them.
            code_names: what each of the K codes is called, if anything.
        """
        if not isinstance(text_config, PreTrainedConfig):
            text_config = AutoConfig.for_model(**{"model_type": "llama"} | (text_config or {}))
        self.text_config = text_config
        self.latent: dict[str, Any] = {
            "latent_mode": "lpc",
            "codebook_size": 64,
            "latent_mlp_hidden_size": None,
            "posterior_input": "concat",
        } | (latent or {})
        self.code_names = code_names
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            kwargs.setdefault(name, getattr(text_config, name, None))
        super().__init__(**kwargs)
