"""A response that was generated while a run goes on, as an example of a latent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A prompt, and the response to it under one latent."""

    prompt: str
    latent: str
    """`prior`, `code:K` or `none`."""
    response: str
    num_tokens: int
    """Without the token that ends it."""
    is_cut: bool
    """Whether it reached the most tokens before its end."""
