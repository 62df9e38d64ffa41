"""A language model with Latent Preference Coding (arXiv 2505.04993).

    log pi(y_t | x, y_<t, z) = log softmax(W (h_t + z))[y_t]

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), latent="mean")

z is computed from the last token of the prompt, and added to the last hidden state of that token and of all later ones.
`latent` chooses it:

    "mean"       the codes, weighted by the prior p(z|x)
    "sample"     one code, drawn from the prior
    "argmax"     the prior's most probable code
    "none"       none: the policy without z
    an integer   that code
    a list       K mixture weights of the codes for all sequences, such as `model.load_latent("ann.safetensors")`
    a tensor     [B, K] mixture weights for each sequence

Shape legend: B sequences, S tokens, H hidden size, K codes, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_lpc import LPCConfig
from .prior_network import mlp, normalized, prior_probabilities
from .saved_latent import read_latent_of

Latent = str | int | Sequence[float] | Tensor

# Hidden states that the posterior network reads for a pair: [h_w; h_l], h_w - h_l, or [h_w; h_l; h_w * h_l].
_POSTERIOR_INPUTS = {"concat": 2, "difference": 1, "bilinear": 3}

# Newer versions of transformers say `cache` for `past_key_values`: either name is accepted, and the installed one used.
_CACHE_NAMES = ("cache", "past_key_values")
_CACHE = next(name for name in _CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})


@dataclass
class LPCOutput(CausalLMOutputWithPast):
    """The backbone's output, and the latent that was added."""

    z: Tensor | None = None
    """[B, H]."""
    code_weights: Tensor | None = None
    """[B, K] fp32; None where z was given, for `none` and for the continuous control."""


class LatentHead(nn.Module):
    """Prior, posterior (where there is one) and codebook; for the `continuous` control one network of the prompt.

    Tensors have the same names as in training.
    """

    code_unit: Tensor
    """[1] what part of a hidden state is one unit of the codes: z = code_unit * (w @ codebook)."""

    def __init__(self, config: LPCConfig) -> None:
        super().__init__()
        latent = config.latent
        hidden = config.get_text_config().hidden_size
        codes = latent["codebook_size"]
        mlp_hidden_size = latent["latent_mlp_hidden_size"] or hidden
        posterior_inputs = _POSTERIOR_INPUTS[latent["posterior_input"]] * hidden
        self.is_continuous = latent["latent_mode"] == "continuous"
        if self.is_continuous:
            mlp_hidden_size = _matched_mlp_hidden_size(hidden, mlp_hidden_size, codes, posterior_inputs)
            self.network = mlp(hidden, mlp_hidden_size, hidden)
        else:
            self.prior = mlp(hidden, mlp_hidden_size, codes)
            if latent["latent_inference"] == "amortized":
                # Not used here, for it reads a labelled pair. It is kept so that training can continue.
                self.posterior = mlp(posterior_inputs, mlp_hidden_size, codes)
            self.codebook = nn.Parameter(torch.zeros(codes, hidden))
        self.register_buffer("code_unit", torch.ones(1))

    def forward(self, h_x: Tensor, latent: Latent) -> tuple[Tensor, Tensor | None]:
        """Latents of B prompts.

        Args:
            h_x: [B, H] hidden states at the last token of each prompt.
            latent: how z is chosen; see the top of this file.

        Returns:
            z [B, H], and the mixture weights of its codes [B, K] fp32 (None for `none` and the continuous control).

        Raises:
            ValueError: the model has no such latent.
        """
        if latent == "none":
            return torch.zeros_like(h_x), None
        if self.is_continuous:
            if latent != "mean":
                raise ValueError(f"latent={latent!r}: this model has no codes; its only latent is 'mean'")
            return self.code_unit * self.network(normalized(h_x)), None
        prior = prior_probabilities(self.prior, h_x)
        weights = self._weights(prior, latent)
        codes = self.code_unit * self.codebook
        return weights.to(codes.dtype) @ codes, weights

    def _weights(self, prior: Tensor, latent: Latent) -> Tensor:
        """Mixture weights [B, K] fp32 of a latent, from the prior's probabilities [B, K] fp32."""
        codes = prior.size(-1)
        if isinstance(latent, Tensor):
            if latent.shape != prior.shape:
                raise ValueError(f"latent: code weights must be {list(prior.shape)}, got {list(latent.shape)}")
            return latent.to(prior)
        if isinstance(latent, Sequence) and not isinstance(latent, str):
            if len(latent) != codes:
                raise ValueError(f"latent: weights of {len(latent)} codes, the model has {codes}")
            return prior.new_tensor(latent).expand_as(prior)
        if latent == "mean":
            return prior
        if isinstance(latent, int) and 0 <= latent < codes:
            chosen = torch.full((len(prior),), latent, device=prior.device)
        elif latent == "argmax":
            chosen = prior.argmax(-1)
        elif latent == "sample":
            chosen = torch.multinomial(prior, 1).squeeze(-1)
        else:
            raise ValueError(
                f"latent={latent!r}: must be 'mean', 'sample', 'argmax', 'none', "
                f"a code from 0 to {codes - 1}, {codes} weights, or weights [B, {codes}]"
            )
        return nn.functional.one_hot(chosen, codes).float()


class LPCForCausalLM(PreTrainedModel, GenerationMixin):
    """Any language model of transformers, `backbone`, with a `latent_head` before its LM head."""

    config_class = LPCConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LPCConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForCausalLM.from_config(config.get_text_config())
        self.latent_head = LatentHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        latent: Latent = "mean",
        z: Tensor | None = None,
        prompt_end: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> LPCOutput:
        """One forward pass.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 on padding, on either side; with a cache, [B, past + S].
            latent: how z is chosen (see the top of this file), where `z` is not given.
            z: [B, H], added to every hidden state, as in the steps of `generate` after the first.
            prompt_end: [B] int64, index of each prompt's last token, from which on z is added. When unset, each
                sequence's last token: the whole input is the prompt. Give it to score responses.
            logits_to_keep: compute the logits of that many last tokens only; 0 computes all.
            kwargs: passed to the backbone, such as `cache` or `past_key_values`.

        Returns:
            logits [B, S or `logits_to_keep`, V], and the latent that was added.
        """
        for name in _CACHE_NAMES:
            if name in kwargs:
                kwargs[_CACHE] = kwargs.pop(name)
        outputs = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state
        kept = hidden[:, -logits_to_keep:]
        code_weights = None
        if z is None:
            if prompt_end is None:
                prompt_end = _last_tokens(hidden, attention_mask)
            sequences = torch.arange(len(hidden), device=hidden.device)
            z, code_weights = self.latent_head(hidden[sequences, prompt_end], latent)
            columns = torch.arange(hidden.size(1), device=hidden.device)
            has_latent = columns[-logits_to_keep:] >= prompt_end[:, None]
            kept = torch.where(has_latent[..., None], kept + z[:, None], kept)
        else:
            kept = kept + z[:, None]
        return LPCOutput(
            logits=self._logits(kept),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            z=z,
            code_weights=code_weights,
            **{_CACHE: getattr(outputs, _CACHE)},
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """The LM head and, in Gemma 2, its soft cap."""
        logits = self.get_output_embeddings()(hidden)
        softcap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def load_latent(self, path: str | Path) -> list[float]:
        """The K mixture weights in a file that `megatron_lpc.personalize` wrote, as `generate(latent=...)` takes them.

        Raises:
            ValueError: the file cannot be read, or is of another model.
        """
        if self.latent_head.is_continuous:
            raise ValueError(f"{path}: holds weights of codes, and this model has none")
        return read_latent_of(path, self.latent_head.codebook, self.latent_head.code_unit).weights.tolist()

    def generate(self, *args: Any, latent: Latent = "mean", **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, with prompts padded on the left.

        Raises:
            ValueError: there is no such latent; or beam search is asked for with a sampled latent, which every beam
                would draw for itself.
        """
        settings = kwargs.get("generation_config") or self.generation_config
        num_beams = kwargs.get("num_beams") or getattr(settings, "num_beams", None) or 1
        if latent == "sample" and num_beams > 1:
            raise ValueError(
                "latent='sample' has no beam search: every beam would have another latent; use num_return_sequences"
            )
        return super().generate(*args, latent=latent, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: LPCOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the latent of the prompt for the whole response."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return model_kwargs | {"z": outputs.z}


def _last_tokens(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B] int64, index of the last token of each sequence that is not padding."""
    columns = torch.arange(hidden.size(1), device=hidden.device)
    if attention_mask is None:
        attention_mask = columns.new_ones(hidden.shape[:2])
    present = attention_mask[:, -hidden.size(1) :]
    return (present * columns).argmax(-1)


def _matched_mlp_hidden_size(hidden: int, mlp_hidden_size: int, codes: int, posterior_inputs: int) -> int:
    """MLP hidden size at which the continuous control has as many parameters as prior, posterior and codebook."""
    prior = (hidden + 1) * mlp_hidden_size + (mlp_hidden_size + 1) * codes
    posterior = (posterior_inputs + 1) * mlp_hidden_size + (mlp_hidden_size + 1) * codes
    parameters = prior + posterior + codes * hidden
    return max(1, round((parameters - hidden) / (2 * hidden + 1)))
