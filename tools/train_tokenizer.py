"""Train a sentencepiece tokenizer on the text of preference data.

    python tools/train_tokenizer.py --input train.jsonl.gz --output tokenizer --vocab-size 4096

writes tokenizer.model, for `tokenizer_model`. The same input and options give the same file. Any text comes back from
its tokens unchanged: nothing is normalised, spaces are kept, characters outside the vocabulary are spelled in bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.data.source import BadRow, Row, read_rows
from megatron_lpc.files import whole_file
from megatron_lpc.terminal import progress

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
    Raises BadRow at a row that cannot be read or has no text, UserError when the text cannot fill the vocabulary.
    """
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    texts = (text for source in inputs for row in read_rows(source) for text in texts_of(row))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=progress(texts, "Reading"),
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
        raise UserError(
            f"sentencepiece cannot train on {', '.join(inputs)}: {reason}. Change --vocab-size, or give more text."
        ) from error
    path = Path(f"{output}.model")
    with whole_file(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return path


def texts_of(row: Row | BadRow) -> Iterator[str]:
    """Every text of a row: its columns, or the messages in them. The row need not be a usable pair."""
    if isinstance(row, BadRow):
        raise row
    columns = [row.values[name] for name in COLUMNS if row.values.get(name)]
    chats = [column for column in columns if isinstance(column, list)]
    messages = [message.get("content") for chat in chats for message in chat if isinstance(message, dict)]
    texts = [text for text in columns + messages if isinstance(text, str)]
    if not texts:
        raise row.location.bad_row(f"no text in any of the columns {', '.join(COLUMNS)}", "Rename the columns")
    yield from texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the tokenizer cannot be trained."""
    with reports_errors():
        options = _parser().parse_args(arguments)
        try:
            path = train_tokenizer(
                options.input,
                options.output,
                options.vocab_size,
                options.model_type,
                options.max_texts,
                options.symbols,
            )
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        print(f"Wrote {path}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", required=True, help="JSONL(.gz), Parquet or Arrow files, or Hub names")
    parser.add_argument("--output", required=True, help="path of the model without .model")
    vocabulary = "token ids, the 256 bytes and 4 special tokens included (8192)"
    parser.add_argument("--vocab-size", type=int, default=8192, help=vocabulary)
    parser.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram", help="kind of model (unigram)")
    sample = "texts to train on; a random sample of more than that (1,000,000)"
    parser.add_argument("--max-texts", type=int, default=1_000_000, help=sample)
    symbols = "texts that become one token each, such as the marks of a chat template"
    parser.add_argument("--symbols", nargs="*", default=[], help=symbols)
    return parser


if __name__ == "__main__":
    main()
