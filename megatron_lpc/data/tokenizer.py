"""One interface to Hugging Face tokenizers and sentencepiece models."""

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
    """Fills sequences; carries no loss, so any valid id does."""
    fingerprint: str
    """Hash of everything that decides the ids of a text or a chat."""

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Token ids of `text`.

        Special tokens that are written out in it become their ids; only `bos_id` is ever added.
        """

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""

    def render_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Messages as the chat template writes them.

        Raises:
            LookupError: there is no chat template.
            ValueError: it refuses the messages.
        """


def load_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer named by `tokenizer_model`, with `chat_template` in place of its own when set.

    Raises:
        ValueError: it cannot be loaded or has no end-of-text token.
        FileNotFoundError: there is no such template file.
    """
    name = config.tokenizer_model
    if not name:
        raise ValueError(
            "--tokenizer-model is not set. "
            "Give a Hugging Face tokenizer (folder or name) or a sentencepiece .model file."
        )
    template = _read_template(config.chat_template)
    if name.endswith(".model"):
        return SentencePieceTokenizer(name, template)
    return HuggingFaceTokenizer(name, template)


class HuggingFaceTokenizer:
    """A `transformers` tokenizer: a folder, or a name on the Hub."""

    def __init__(self, name: str, chat_template: str | None = None) -> None:
        """
        Raises:
            ValueError: it cannot be loaded or has no end-of-text token.
        """
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
        self._prefix = self._special_prefix()
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.vocab_size = max(self._vocabulary.values()) + 1
        self.eos_id: int = self._tokenizer.eos_token_id
        pad_id = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.bos_id: int | None = self._tokenizer.bos_token_id if self._prefix else None
        self.fingerprint = self._fingerprint()

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
        """The special tokens that the model expects before a text."""
        # Only the tokenizer's post-processor knows them, so ask it; what it puts behind the text is not wanted.
        text = self._tokenizer.encode("a", add_special_tokens=False)
        with_special = self._tokenizer.encode("a", add_special_tokens=True)
        for start in range(len(with_special)):
            if with_special[start : start + len(text)] == text:
                return with_special[:start]
        return []

    def _fingerprint(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend:
            model = backend.to_str()
        else:
            model = json.dumps([type(self._tokenizer).__name__, self._vocabulary], sort_keys=True)
        special = json.dumps([self._tokenizer.special_tokens_map, self._prefix], sort_keys=True, default=str)
        template = json.dumps(self._tokenizer.chat_template, sort_keys=True)
        return _digest(model, special, template)


class SentencePieceTokenizer:
    """A sentencepiece .model file; chats need a template file."""

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        """
        Raises:
            ValueError: there is no such file, it is no sentencepiece model, or it has no end-of-text token.
        """
        from sentencepiece import SentencePieceProcessor

        if not Path(path).is_file():
            raise ValueError(f"--tokenizer-model {path}: no such file. Train one with tools/train_tokenizer.py.")
        try:
            self._model = SentencePieceProcessor(model_proto=Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(
                f"--tokenizer-model {path}: not a sentencepiece model ({error}). "
                "Give a .model file, or a folder for a Hugging Face tokenizer."
            ) from error
        if self._model.eos_id() < 0:
            raise ValueError(f"--tokenizer-model {path}: no end-of-text token. Train it with an eos id.")
        self._path = path
        self._template = chat_template
        self.vocab_size: int = self._model.vocab_size()
        # sentencepiece says -1 where a model lacks a token.
        self.eos_id: int = self._model.eos_id()
        self.bos_id: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.pad_id: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        special_ids = [token for token in (self.bos_id, self.eos_id) if token is not None]
        self._special = {self._model.id_to_piece(token): token for token in special_ids}
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, self._special))})")
        self.fingerprint = _digest(self._model.serialized_model_proto(), json.dumps(chat_template))

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids: list[int] = []
        if add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        for part in self._special_pattern.split(text):
            if part in self._special:
                ids.append(self._special[part])
            else:
                ids.extend(self._model.encode(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def render_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        if self._template is None:
            raise LookupError(_no_template(self._path))
        from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

        try:
            rendered, _ = render_jinja_template(
                [messages],
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._piece(self.bos_id),
                eos_token=self._piece(self.eos_id),
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
    """SHA-256 of the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
