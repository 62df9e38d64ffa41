"""Train a sentencepiece tokenizer on the text of preference data.

    python tools/train_tokenizer.py --input train.jsonl.gz --output tokenizer --vocab-size 4096

writes tokenizer.model, for `tokenizer_model`. The same input and options give the same file. Any text comes back from its tokens
unchanged: nothing is normalised, spaces are kept, and characters outside the vocabulary are spelled in bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
from rich.console import Console
from rich.progress import track

from megatron_lpc.data.source import BadRow, Row, read_rows

COLUMNS = ("prompt", "chosen", "rejected")


def train_tokenizer(
    inputs: Sequence[str],
    output: str,
    vocab_size: int,
    model_type: str = "unigram",
    max_texts: int = 1_000_000,
    symbols: Sequence[str] = (),
) -> Path:
    """Write `output`.model, trained on all text in the columns prompt, chosen and rejected of `inputs`.

    Of more than `max_texts` texts a random sample (of fixed seed) is used. `symbols` become tokens of their own.
    Raises BadRow at a row that cannot be read or has no text, ValueError when the text cannot fill the vocabulary.
    """
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    texts = (text for source in inputs for row in read_rows(source) for text in texts_of(row))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=track(texts, description="Reading", total=None, console=Console(stderr=True)),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            input_sentence_size=max_texts,
            user_defined_symbols=list(symbols),
            num_threads=1,  # sums in a fixed order: the same input gives the same model
            max_sentence_length=2**30,  # the default leaves out longer texts
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            pad_id=3,
            minloglevel=1,
        )
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"sentencepiece cannot train on {', '.join(inputs)}: {reason}. Change --vocab-size, or give more text."
        ) from error
    path = Path(f"{output}.model")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(model.getvalue())
    return temporary.replace(path)


def texts_of(row: Row | BadRow) -> Iterator[str]:
    """Every text of a row: its columns, or the messages in them. Whether the row is a usable pair does not matter here."""
    if isinstance(row, BadRow):
        raise row
    columns = [row.values[name] for name in COLUMNS if row.values.get(name)]
    messages = [
        message for column in columns if isinstance(column, list) for message in column if isinstance(message, dict)
    ]
    texts = [text for text in columns + [message.get("content") for message in messages] if isinstance(text, str)]
    if not texts:
        raise row.location.bad_row(f"no text in any of the columns {', '.join(COLUMNS)}", "Rename the columns")
    yield from texts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", required=True, help="JSONL(.gz), Parquet or Arrow files, or Hub names")
    parser.add_argument("--output", required=True, help="path of the model without .model")
    parser.add_argument(
        "--vocab-size", type=int, default=8192, help="words, the 256 bytes and 4 special ones included (8192)"
    )
    parser.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram", help="kind of model (unigram)")
    parser.add_argument(
        "--max-texts", type=int, default=1_000_000, help="texts trained on; a sample when there are more (1,000,000)"
    )
    parser.add_argument(
        "--symbols", nargs="*", default=[], help="texts that are one token each, such as the marks of a chat template"
    )
    options = parser.parse_args(arguments)
    try:
        path = train_tokenizer(
            options.input, options.output, options.vocab_size, options.model_type, options.max_texts, options.symbols
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
