"""One small face for Hugging Face tokenizers and sentencepiece models."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Protocol

from megatron_lpc.config.schema import DataConfig


class Tokenizer(Protocol):
    """What the project asks of a tokenizer."""

    vocab_size: int
    """Highest token id + 1."""
    bos_id: int | None
    """Begins every text prompt; None when the model has no such token or its tokenizer does not use it."""
    eos_id: int
    pad_id: int
    """Fills rows; carries no loss, so any valid id does."""
    fingerprint: str
    """Hash of everything that decides the ids of a text or a chat."""

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Token ids of `text`; special tokens that are written out in it become their ids, none but `bos_id` is added."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""

    def render_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Messages as the chat template writes them. Raises LookupError when there is none, ValueError when it refuses the messages."""


def load_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer named by `tokenizer_model`, with `chat_template` in place of its own when set.

    Raises ValueError when it cannot be loaded or has no end-of-text token, FileNotFoundError for a missing template file.
    """
    name = config.tokenizer_model
    if not name:
        raise ValueError(
            "--tokenizer-model is not set. Give a Hugging Face tokenizer (folder or name) or a sentencepiece .model file."
        )
    template = _read_template(config.chat_template)
    return SentencePieceTokenizer(name, template) if name.endswith(".model") else HuggingFaceTokenizer(name, template)


class HuggingFaceTokenizer:
    """A `transformers` tokenizer: a folder, or a name on the Hub."""

    def __init__(self, name: str, chat_template: str | None = None) -> None:
        from transformers import AutoTokenizer  # slow to import

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
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
        self._name = name
        self.eos_id: int = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad
        self._prefix = self._special_prefix()
        self.bos_id: int | None = self._tokenizer.bos_token_id if self._prefix else None
        vocabulary = self._tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self.fingerprint = _digest(
            backend.to_str() if backend else json.dumps([type(self._tokenizer).__name__, vocabulary], sort_keys=True),
            json.dumps([self._tokenizer.special_tokens_map, self._prefix], sort_keys=True, default=str),
            json.dumps(self._tokenizer.chat_template, sort_keys=True),
        )

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return self._prefix + ids if add_bos else ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def render_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        if self._tokenizer.chat_template is None:
            raise LookupError(_no_template(self._name))
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template raises jinja2's errors and, by itself, any other
            raise ValueError(f"the chat template refuses the messages ({error})") from error

    def _special_prefix(self) -> list[int]:
        # What the model expects before a text is known only to the tokenizer's post-processor: ask it, whatever it adds behind.
        bare = self._tokenizer.encode("a", add_special_tokens=False)
        full = self._tokenizer.encode("a", add_special_tokens=True)
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:start]


class SentencePieceTokenizer:
    """A sentencepiece .model file; chats need a template file."""

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        if not Path(path).is_file():
            raise ValueError(f"--tokenizer-model {path}: no such file. Train one with tools/train_tokenizer.py.")
        try:
            self._model = SentencePieceProcessor(model_proto=Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"--tokenizer-model {path}: not a sentencepiece model ({error}).") from error
        if self._model.eos_id() < 0:
            raise ValueError(f"--tokenizer-model {path}: no end-of-text token. Train it with an eos id.")
        self._path, self._template = path, chat_template
        self.vocab_size: int = self._model.vocab_size()
        self.eos_id: int = self._model.eos_id()
        self.bos_id: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.pad_id: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        self._special = {self._model.id_to_piece(i): i for i in (self.bos_id, self.eos_id) if i is not None}
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, self._special))})")
        self.fingerprint = _digest(self._model.serialized_model_proto(), json.dumps(chat_template))

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        for part in self._special_pattern.split(text):
            ids += [self._special[part]] if part in self._special else self._model.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def render_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        if self._template is None:
            raise LookupError(_no_template(self._path))
        from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

        names = {"bos_token": self._piece(self.bos_id), "eos_token": self._piece(self.eos_id)}
        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=self._template, add_generation_prompt=add_generation_prompt, **names
            )
        except Exception as error:  # a template raises jinja2's errors and, by itself, any other
            raise ValueError(f"the chat template refuses the messages ({error})") from error
        return rendered[0]

    def _piece(self, token: int | None) -> str:
        return "" if token is None else self._model.id_to_piece(token)


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"--chat-template {path}: no such file. Give a Jinja file.")
    return Path(path).read_text(encoding="utf-8")


def _no_template(name: str) -> str:
    return f"the data holds chat messages but the tokenizer {name} has no chat template: give one with --chat-template"


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
