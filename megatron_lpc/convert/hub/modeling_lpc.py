"""A language model with Latent Preference Coding (arXiv 2505.04993): log pi(y_t | x, y_<t, z) = log softmax(W (h_t + z)).

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), latent="mean")

z is read from the last token of the prompt, and added to the last hidden state of that token and of all that follow.
`latent` chooses it: "mean", the codes weighted by the prior p(z|x); "sample", one code drawn from it; "argmax", its most probable code;
a number, that code; or a tensor [B, K] of code weights, such as a person's mean posterior.

Shape legend: B rows, S tokens, H hidden size, K codes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_lpc import LPCConfig

Latent = str | int | Tensor


@dataclass
class LPCOutput(CausalLMOutputWithPast):
    """Adds what was added."""

    z: Tensor | None = None
    """[B, H]."""
    code_weights: Tensor | None = None
    """[B, K] fp32; None where z was given, and for the continuous control."""


class LatentHead(nn.Module):
    """Prior, posterior and codebook; for the `continuous` control a network of the prompt alone. Named as in training."""

    def __init__(self, config: LPCConfig) -> None:
        super().__init__()
        latent, hidden = config.latent, config.get_text_config().hidden_size
        codes, width = latent["codebook_size"], latent["latent_mlp_hidden_size"] or hidden
        posterior = {"concat": 2, "difference": 1, "bilinear": 3}[latent["posterior_input"]] * hidden
        self.is_continuous = latent["latent_mode"] == "continuous"
        if self.is_continuous:
            parameters = (hidden + 1) * width + (posterior + 1) * width + 2 * (width + 1) * codes + codes * hidden
            self.network = _mlp(hidden, max(1, round((parameters - hidden) / (2 * hidden + 1))), hidden)
        else:
            self.prior = _mlp(hidden, width, codes)
            self.posterior = _mlp(
                posterior, width, codes
            )  # Not read here: it needs a pair. It is kept for further training.
            self.codebook = nn.Parameter(torch.zeros(codes, hidden))

    def forward(self, h_x: Tensor, latent: Latent) -> tuple[Tensor, Tensor | None]:
        """z [B, H] and the weights of its codes [B, K] fp32, from the hidden states [B, H] at the last token of each prompt.

        Raises:
            ValueError: there is no such latent.
        """
        if self.is_continuous:
            if latent != "mean":
                raise ValueError(f"latent={latent!r}: this model has no codes; its one latent is 'mean'")
            return self.network(h_x), None
        weights = self._weights(self.prior(h_x).float().softmax(-1), latent)
        return weights.to(self.codebook.dtype) @ self.codebook, weights

    def _weights(self, prior: Tensor, latent: Latent) -> Tensor:
        codes = prior.size(-1)
        if isinstance(latent, Tensor):
            if latent.shape != prior.shape:
                raise ValueError(f"latent: code weights must be {list(prior.shape)}, got {list(latent.shape)}")
            return latent.to(prior)
        if isinstance(latent, int) and 0 <= latent < codes:
            chosen = torch.full((len(prior),), latent, device=prior.device)
        elif latent == "argmax":
            chosen = prior.argmax(-1)
        elif latent == "sample":
            chosen = torch.multinomial(prior, 1).squeeze(-1)
        elif latent == "mean":
            return prior
        else:
            raise ValueError(
                f"latent={latent!r}: must be 'mean', 'sample', 'argmax', a code from 0 to {codes - 1}, or weights [B, {codes}]"
            )
        return nn.functional.one_hot(chosen, codes).float()


class LPCForCausalLM(PreTrainedModel, GenerationMixin):
    """Any language model of transformers, `backbone`, with a `latent_head` between its last hidden states and its LM head."""

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
        """One pass.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 on padding, on either side; with a cache, [B, past + S].
            latent: how z is chosen (see above), where it is not given.
            z: [B, H], added to every hidden state, as in the steps of `generate` that follow the first.
            prompt_end: [B] int64, index of each prompt's last token, from which on z is added; each row's last token when unset, so that
                the whole input is the prompt. Give it to score responses.
            logits_to_keep: compute the logits of that many last tokens; 0: of all.
            kwargs: handed to the backbone.

        Returns:
            logits [B, S or `logits_to_keep`, V], and what was added.
        """
        outputs = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden, code_weights = outputs.last_hidden_state, None
        kept = hidden[:, -logits_to_keep:]
        if z is None:
            columns = torch.arange(hidden.size(1), device=hidden.device)
            if prompt_end is None:
                present = (
                    columns.new_ones(hidden.shape[:2])
                    if attention_mask is None
                    else attention_mask[:, -hidden.size(1) :]
                )
                prompt_end = (present * columns).argmax(-1)
            h_x = hidden[torch.arange(len(hidden), device=hidden.device), prompt_end]
            z, code_weights = self.latent_head(h_x, latent)
            answered = columns[-logits_to_keep:] >= prompt_end[:, None]
            kept = torch.where(answered[..., None], kept + z[:, None], kept)
        else:
            kept = kept + z[:, None]
        return LPCOutput(
            logits=self.get_output_embeddings()(kept),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            z=z,
            code_weights=code_weights,
        )

    def generate(self, *args: Any, latent: Latent = "mean", **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, with prompts padded on the left.

        Raises:
            ValueError: there is no such latent; or beams are asked for under a sampled one, which each beam would draw for itself.
        """
        settings = kwargs.get("generation_config") or self.generation_config
        if latent == "sample" and (kwargs.get("num_beams") or getattr(settings, "num_beams", None) or 1) > 1:
            raise ValueError(
                "latent='sample' has no beam search: every beam would have another latent; use num_return_sequences"
            )
        return super().generate(*args, latent=latent, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: LPCOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The latent of the prompt stays for the whole response."""
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs) | {"z": outputs.z}


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
