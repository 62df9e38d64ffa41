"""Responses to prompts under one latent, by transformers' `generate` with its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.generation.latents import NamedLatent
from megatron_lpc.generation.open_export import OpenExport
from megatron_lpc.generation.options import Sampling
from megatron_lpc.generation.prompts import Prompt
from megatron_lpc.terminal import progress


@dataclass(frozen=True)
class Response:
    """What the model answered."""

    text: str
    num_tokens: int
    """Without the token that ends it."""
    is_cut: bool
    """Whether it reached `max_new_tokens` before its end."""


def respond_to_all(
    opened: OpenExport, prompts: Sequence[Prompt], latents: Sequence[NamedLatent], sampling: Sampling
) -> dict[str, list[Response]]:
    """Name of each latent -> responses to all prompts. Each latent starts from the same seed."""
    responses: dict[str, list[Response]] = {latent.name: [] for latent in latents}
    starts = range(0, len(prompts), sampling.batch_size)
    batches = [(latent, start) for latent in latents for start in starts]
    for latent, start in progress(batches, "Generating", total=len(batches)):
        if start == 0:
            torch.manual_seed(sampling.seed)
        batch = prompts[start : start + sampling.batch_size]
        responses[latent.name] += respond(opened, batch, latent, sampling)
    return responses


def respond(
    opened: OpenExport,
    prompts: Sequence[Prompt],
    latent: NamedLatent,
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> list[Response]:
    """Responses to prompts, which are answered together. What is drawn depends on the state of torch's generator.

    Args:
        streamer: gets the tokens one by one; for a single prompt.
    """
    batch = padded_left(opened, prompts)
    is_drawn = sampling.temperature > 0
    with torch.inference_mode():
        output = opened.model.generate(
            **batch,
            **({"latent": latent.value} if opened.has_head else {}),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=is_drawn,
            # All are given: a model may come with settings of its own.
            temperature=sampling.temperature if is_drawn else 1.0,
            top_p=sampling.top_p,
            top_k=0 if is_drawn else 50,
            eos_token_id=opened.stop_ids,
            pad_token_id=opened.tokenizer.pad_id,
            streamer=streamer,
        )
    new_tokens = output[:, batch["input_ids"].size(1) :].tolist()
    return [_response(token_ids, opened) for token_ids in new_tokens]


def padded_left(opened: OpenExport, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, S] of prompts that end together, on the model's device."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), opened.tokenizer.pad_id)
    mask = torch.zeros_like(tokens)
    for sequence, prompt in enumerate(prompts):
        tokens[sequence, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        mask[sequence, longest - len(prompt.token_ids) :] = 1
    return {"input_ids": tokens.to(opened.model.device), "attention_mask": mask.to(opened.model.device)}


def _response(token_ids: list[int], opened: OpenExport) -> Response:
    end = next((place for place, token in enumerate(token_ids) if token in opened.stop_ids), None)
    kept = token_ids[:end]
    return Response(text=opened.tokenizer.decode(kept), num_tokens=len(kept), is_cut=end is None)


class TerminalStreamer(BaseStreamer):
    """Prints a response while it grows."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._is_prompt = True
        self._shown = ""

    def put(self, value: Any) -> None:
        """Tokens [1, S] of the prompt at first, then one after the other."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._token_ids += value.reshape(-1).tolist()
        text = self._tokenizer.decode(self._token_ids)
        # The bytes of one character may come in several tokens.
        if not text.endswith("\ufffd"):
            self._print(text)

    def end(self) -> None:
        """Print what is left, and a line feed."""
        self._print(self._tokenizer.decode(self._token_ids))
        print(flush=True)

    def _print(self, text: str) -> None:
        print(text[len(self._shown) :], end="", flush=True)
        self._shown = text
