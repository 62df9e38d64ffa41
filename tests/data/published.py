"""Small tokenizers with the chat templates, the special tokens and the conventions of published models.

Only their vocabularies are small. Templates that TRL ships are taken from there, the others are in `templates/`.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Hello there, who are you? I am a small model.",
    "Name a bird. A wren. A cat. Go.",
    "You are a helpful assistant. You answer as a pirate. Ahoy.",
    "Weather in Paris? It is sunny. Find a book. 2+2=4",
    "system user assistant model [INST] Hi [/INST] <<SYS>>",
    "### Response:\nQ: Hi\nA: Hello.",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's and Qwen's pre-tokenizer."""


@dataclass(frozen=True)
class Published:
    """What a model family's tokenizer is like."""

    template: str
    """A file of `templates/`, or of TRL's chat templates."""
    bos: str | None
    eos: str
    special: tuple[str, ...] = ()
    """Further special tokens."""
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    adds_bos: bool = True
    is_sentencepiece: bool = False
    dummy_prefix: bool = True
    """Whether sentencepiece puts a space before a text."""
    no_system: bool = False
    """Whether the template refuses a system's turn."""


FAMILIES = {
    "llama-2": Published("llama2.jinja", "<s>", "</s>", is_sentencepiece=True),
    "mistral": Published("mistral.jinja", "<s>", "</s>", is_sentencepiece=True, no_system=True),
    "mistral-v3": Published(
        "mistral_v3.jinja", "<s>", "</s>", ("[INST]", "[/INST]"), is_sentencepiece=True, no_system=True
    ),
    "gemma": Published(
        "gemma.jinja",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        is_sentencepiece=True,
        dummy_prefix=False,
        no_system=True,
    ),
    "gemma-3": Published(
        "gemma3.jinja",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        is_sentencepiece=True,
        dummy_prefix=False,
    ),
    "llama-3": Published(
        "llama3.jinja",
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "llama-3.2": Published(
        "llama3_2.jinja",
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    ),
    "deepseek-r1-distill": Published(
        "deepseek_r1_distill.jinja",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
    ),
    "qwen2.5": Published(
        "qwen2_5.jinja",
        None,
        "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>"),
        ("<tool_call>", "</tool_call>"),
        adds_bos=False,
    ),
    "qwen3": Published(
        "qwen3.jinja",
        None,
        "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>"),
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        adds_bos=False,
    ),
    "smollm2": Published("smollm2.jinja", "<|im_start|>", "<|im_end|>", ("<|endoftext|>",), adds_bos=False),
}


def write_tokenizer(family: Published, folder: Path) -> None:
    """Write a folder for AutoTokenizer; of sentencepiece models also `tokenizer.model` and `template.jinja`."""
    template = read_template(family.template)
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    if family.is_sentencepiece:
        _write_sentencepiece(family, folder, template)
    else:
        _write_byte_level(family, folder, template)


def read_template(name: str) -> str:
    """A template of `templates/`, or one that TRL ships."""
    own = Path(__file__).parent / "templates" / name
    if own.is_file():
        return own.read_text(encoding="utf-8")
    return (files("trl") / "chat_templates" / name).read_text(encoding="utf-8")


def _write_sentencepiece(family: Published, folder: Path, template: str) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=family.dummy_prefix,
        control_symbols=list(family.special),
        bos_piece=family.bos,
        eos_piece=family.eos,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer" if family.dummy_prefix else "GemmaTokenizer",
        "legacy": True,
        "add_bos_token": family.adds_bos,
        "bos_token": family.bos,
        "eos_token": family.eos,
        "unk_token": "<unk>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_byte_level(family: Published, folder: Path, template: str) -> None:
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 5, trainer)
    special = [token for token in (family.bos, family.eos, *family.special) if token]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.added])
    if family.adds_bos:
        bos = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
