"""Tokenizers of `transformers`."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megatron_lpc.data.chat_template import ChatRenderer, pin_date, writes_date
from megatron_lpc.data.fingerprint import digest
from megatron_lpc.outside.json_text import read_json, read_object
from megatron_lpc.outside.messages import Malformed, brief, reason
from megatron_lpc.outside.model_settings import check_sizes


class HuggingFaceTokenizer(ChatRenderer):
    """A `transformers` tokenizer: a folder, or a name on the Hub."""

    def __init__(
        self, name: str, chat_template: str | None, date: datetime.date, *, trust_remote_code: bool = False
    ) -> None:
        """
        Args:
            date: what a template sees as today.
            trust_remote_code: run the code that the tokenizer comes with, where it has some.

        Raises:
            ValueError: it cannot be loaded, has code that is not trusted, or has no end-of-text token.
        """
        try:
            _check_files(Path(name))
            # Unset, transformers asks on the terminal, and a batch job waits for the answer.
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            self._read(name, chat_template, date)
        except BaseException as error:
            if not _is_of_files(error):
                raise
            raise ValueError(f"--tokenizer-model {name}: {_said(name, error)}") from error

    def _read(self, name: str, chat_template: str | None, date: datetime.date) -> None:
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        if self._tokenizer.eos_token_id is None:
            raise Malformed("no end-of-text token. Set `eos_token` in its tokenizer_config.json.")
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


def _is_of_files(error: BaseException) -> bool:
    """Whether an error may come from what the files hold: any Exception, and the panics of the Rust library."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_files(folder: Path) -> None:
    """Refuse settings in a folder of which transformers would make more than fits, or that Python cannot read."""
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            check_sizes(read_json(folder / name), str(folder / name))


def _said(name: str, error: BaseException) -> str:
    """What to do about an error of loading."""
    if isinstance(error, Malformed):
        return str(error)
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return (
            f"{_file_with_code(name)} names code of its own that has to run; read that code, then allow it with "
            "--trust-remote-code, or choose another tokenizer"
        )
    return f"cannot be loaded ({type(error).__name__}: {reason(error)}). Check the folder or the name."


def _file_with_code(name: str) -> str:
    """The file of a tokenizer that names code, and the code."""
    for file in ("tokenizer_config.json", "config.json"):
        try:
            named = read_object(Path(name) / file, {"auto_map": dict[str, Any]})["auto_map"]
        except Malformed:
            continue
        return f"{Path(name) / file} ({brief(named.get('AutoTokenizer') or named)})"
    return "it"
