"""Models of the sentencepiece library."""

from __future__ import annotations

import datetime
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_lpc.data.chat_template import ChatRenderer, pin_date, writes_date
from megatron_lpc.data.fingerprint import digest
from megatron_lpc.outside.files import read_bytes
from megatron_lpc.outside.messages import Malformed, reason

_MAX_BYTES = 2**28


class SentencePieceTokenizer(ChatRenderer):
    """A sentencepiece .model file; chats need a template file."""

    def __init__(self, path: str, chat_template: str | None, date: datetime.date) -> None:
        """
        Args:
            date: what a template sees as today.

        Raises:
            ValueError: there is no such file, it is no sentencepiece model, or it has no end-of-text token.
        """
        if not Path(path).is_file():
            raise ValueError(f"--tokenizer-model {path}: no such file. Train one with tools/train_tokenizer.py.")
        try:
            self._model = SentencePieceProcessor(model_proto=read_bytes(path, _MAX_BYTES))
            self._read(path, chat_template, date)
        except Malformed as error:
            raise ValueError(f"--tokenizer-model {path}: {error}") from error
        except Exception as error:  # The library and protobuf raise errors of many kinds.
            raise ValueError(
                f"--tokenizer-model {path}: not a sentencepiece model ({reason(error)}). "
                "Give a .model file, or a folder for a Hugging Face tokenizer."
            ) from error

    def _read(self, path: str, chat_template: str | None, date: datetime.date) -> None:
        if self._model.eos_id() < 0:
            raise Malformed("no end-of-text token. Train it with an eos id.")
        self.name = path
        self.template = chat_template
        self.vocab_size: int = self._model.vocab_size()
        # sentencepiece says -1 where a model lacks a token.
        self.eos_id: int = self._model.eos_id()
        self.eos_token: str = self._model.id_to_piece(self.eos_id)
        self.bos_id: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.prefix = [] if self.bos_id is None else [self.bos_id]
        self.pad_id: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        self._control = self._pieces(ModelProto.SentencePiece.CONTROL)
        self._control |= {self._model.id_to_piece(token): token for token in (*self.prefix, self.eos_id)}
        # sentencepiece finds user-defined pieces in a text by itself: tokens of turns, and runs of spaces.
        user_defined = self._pieces(ModelProto.SentencePiece.USER_DEFINED)
        self.special_tokens = tuple(
            sorted({*self._control, *(piece for piece in user_defined if piece.strip("▁\n\t"))})
        )
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._adds_space = self._model.encode_as_pieces("a")[0].startswith("▁")
        self.fingerprint = digest(self._model.serialized_model_proto(), json.dumps(chat_template))
        self.template_date = date if writes_date(chat_template) else None

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids: list[int] = []
        for part in self._control_pattern.split(text):
            if part in self._control:
                ids.append(self._control[part])
            else:
                # sentencepiece puts a space before every text, and so would a second one before a part that has one.
                has_space = self._adds_space and bool(ids) and part.startswith(" ")
                ids.extend(self._model.encode(part[1:] if has_space else part))
        is_complete = not add_bos or ids[: len(self.prefix)] == self.prefix
        return ids if is_complete else self.prefix + ids

    def decode(self, ids: list[int], *, show_special: bool = False) -> str:
        if not show_special:
            return self._model.decode(ids)
        texts: list[str] = []
        for is_control, run in groupby(ids, lambda token: self._model.id_to_piece(token) in self._control):
            pieces = [self._model.id_to_piece(token) for token in run]
            space = " " if texts and self._adds_space and not is_control and pieces[0].startswith("▁") else ""
            texts.append("".join(pieces) if is_control else space + self._model.decode_pieces(pieces))
        return "".join(texts)

    def _render(self, messages: list[dict[str, Any]], variables: dict[str, Any], add_generation_prompt: bool) -> str:
        if self.template_date is not None:
            pin_date(self.template, self.template_date)
        special = {"bos_token": self._piece(self.bos_id), "eos_token": self.eos_token}
        rendered, _ = render_jinja_template(
            [messages],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            **(special | variables),
        )
        return rendered[0]

    def _pieces(self, kind: int) -> dict[str, int]:
        """Piece -> token id of all pieces of a kind."""
        model = ModelProto.FromString(self._model.serialized_model_proto())
        return {piece.piece: token for token, piece in enumerate(model.pieces) if piece.type == kind}

    def _piece(self, token: int | None) -> str:
        return "" if token is None else self._model.id_to_piece(token)
