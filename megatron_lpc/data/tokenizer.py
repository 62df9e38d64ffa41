"""One interface to Hugging Face tokenizers and sentencepiece models."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Protocol

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.outside.messages import Malformed, brief
from megatron_lpc.outside.typed import check

_MAX_VOCAB_SIZE = 2**24


class Tokenizer(Protocol):
    """What the project asks of a tokenizer."""

    name: str
    """The folder, file or Hub name it was loaded from."""
    vocab_size: int
    """Highest token id + 1."""
    bos_id: int | None
    """Begins every text prompt; None when the model has no such token or its tokenizer does not use it."""
    prefix: list[int]
    """All tokens that begin every text prompt; mostly `bos_id` alone, or none."""
    eos_id: int
    eos_token: str
    """`eos_id` as it is written in a text."""
    pad_id: int
    """Fills sequences; carries no loss, so any valid id does."""
    special_tokens: tuple[str, ...]
    """The tokens with a meaning of their own, as they are written in a text."""
    fingerprint: str
    """Hash of everything that decides the ids of a text or a chat, but for the date that a template writes."""
    template: Any
    """The chat template: Jinja text, several texts by name, or None."""
    template_date: datetime.date | None
    """The date that the chat template sees as today's; None where it does not ask for it."""

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Token ids of `text`, in which special tokens that are written out become their ids.

        `add_bos` puts `prefix` before them, unless the text begins with it. Nothing else is ever added.
        """

    def decode(self, ids: list[int], *, show_special: bool = False) -> str:
        """Text of `ids`, without special tokens unless they are to be shown."""

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Messages as the chat template writes them.

        Args:
            arguments: further variables of the template, such as `tools`.

        Raises:
            LookupError: there is no chat template.
            ValueError: it refuses the messages.
        """


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raise a Malformed where the files of a tokenizer gave what cannot be one."""
    what = f"--tokenizer-model {tokenizer.name}"
    check(tokenizer.vocab_size, int, f"{what}: its highest token id")
    check(tokenizer.eos_token, str, f"{what}: the end-of-text token")
    check(tokenizer.template, str | dict[str, str] | None, f"{what}: its chat template")
    ids = [tokenizer.eos_id, tokenizer.pad_id, *tokenizer.prefix]
    if not 0 < tokenizer.vocab_size <= _MAX_VOCAB_SIZE or not all(0 <= each < tokenizer.vocab_size for each in ids):
        raise Malformed(f"{what}: its token ids are none of a vocabulary (up to {brief(tokenizer.vocab_size - 1)})")


def load_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer named by `tokenizer_model`, with `chat_template` in place of its own when set.

    Raises:
        ValueError: it cannot be loaded, holds what no tokenizer has, has code of its own without `trust_remote_code`,
            has no end-of-text token, or `chat_template_date` does not fit its template.
        FileNotFoundError: there is no such template file.
    """
    name = config.tokenizer_model
    if not name:
        raise ValueError(
            "--tokenizer-model is not set. "
            "Give a Hugging Face tokenizer (folder or name) or a sentencepiece .model file."
        )
    from megatron_lpc.data.chat_template import check_date, read_template, template_date
    from megatron_lpc.data.huggingface_tokenizer import HuggingFaceTokenizer  # imports transformers, which is slow
    from megatron_lpc.data.sentencepiece_tokenizer import SentencePieceTokenizer

    template, date = read_template(config.chat_template), template_date(config)
    tokenizer: Tokenizer
    if name.endswith(".model"):
        tokenizer = SentencePieceTokenizer(name, template, date)
    else:
        tokenizer = HuggingFaceTokenizer(name, template, date, trust_remote_code=config.trust_remote_code)
    check_tokenizer(tokenizer)
    check_date(config, tokenizer.template)
    return tokenizer
