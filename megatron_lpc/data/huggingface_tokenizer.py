"""Tokenizers of `transformers`."""

from __future__ import annotations

import datetime
import json
from typing import Any

from transformers import AutoTokenizer

from megatron_lpc.data.chat_template import ChatRenderer, pin_date, writes_date
from megatron_lpc.data.fingerprint import digest


class HuggingFaceTokenizer(ChatRenderer):
    """A `transformers` tokenizer: a folder, or a name on the Hub."""

    def __init__(self, name: str, chat_template: str | None, date: datetime.date) -> None:
        """
        Args:
            date: what a template sees as today.

        Raises:
            ValueError: it cannot be loaded or has no end-of-text token.
        """
        try:
            # Unset, transformers asks on the terminal whether to run the code in an export with an LPC head.
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--tokenizer-model {name}: cannot be loaded ({error}). Check the folder or the name."
            ) from error
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                f"--tokenizer-model {name}: no end-of-text token. Set `eos_token` in its tokenizer_config.json."
            )
        self.name = name
        self.template = self._tokenizer.chat_template
        self.prefix = self._special_prefix()
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.vocab_size = max(self._vocabulary.values()) + 1
        self.eos_id: int = self._tokenizer.eos_token_id
        self.eos_token: str = self._tokenizer.eos_token
        pad_id = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.bos_id: int | None = self._tokenizer.bos_token_id if self.prefix else None
        self.special_tokens = self._special_tokens()
        self.fingerprint = self._fingerprint()
        self.template_date = date if writes_date(self.template) else None

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        is_complete = not add_bos or ids[: len(self.prefix)] == self.prefix
        return ids if is_complete else self.prefix + ids

    def decode(self, ids: list[int], *, show_special: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=not show_special)

    def _render(self, messages: list[dict[str, Any]], variables: dict[str, Any], add_generation_prompt: bool) -> str:
        if self.template_date is not None:
            pin_date(self._tokenizer.get_chat_template(None, variables.get("tools")), self.template_date)
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
        )

    def _special_prefix(self) -> list[int]:
        """The special tokens that the model expects before a text."""
        # Only the tokenizer's post-processor knows them, so ask it; what it puts behind the text is not wanted.
        text = self._tokenizer.encode("a", add_special_tokens=False)
        with_special = self._tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(with_special)):
            if with_special[start : start + len(text)] == text:
                return with_special[:start]
        return []

    def _special_tokens(self) -> tuple[str, ...]:
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(sorted(added.union(self._tokenizer.all_special_tokens)))

    def _fingerprint(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend:
            model = backend.to_str()
        else:
            model = json.dumps([type(self._tokenizer).__name__, self._vocabulary], sort_keys=True)
        special = json.dumps([self._tokenizer.special_tokens_map, self.prefix], sort_keys=True, default=str)
        template = json.dumps(self.template, sort_keys=True)
        return digest(model, special, template)
