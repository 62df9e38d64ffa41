"""The fields of a request that ask a server for a latent, as JSON:

    PYTHONPATH=EXPORT python -m lpc_serving.request EXPORT --latent brief --server sglang

Names become weights here, and what is malformed is refused before a server has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .latent_table import PACKAGE, PRIOR_LATENTS, REQUEST_KEY, LatentTable
from .logit_bias import OPENAI_ENTRIES, logit_bias

_SGLANG_CLASS = f"c{PACKAGE}.sglang_latents\nLatentLogits\n."
"""A pickle that holds nothing but the name of the class, which SGLang looks up."""
_RESPONSES = ("chosen", "rejected", "response")


def sglang_fields(table: LatentTable, latent: Any) -> dict[str, Any]:
    """`custom_logit_processor` and `custom_params`; latents as `lpc_latent`.

    Raises:
        ValueError: there is no such latent.
    """
    processor = json.dumps({"callable": _SGLANG_CLASS.encode().hex()})
    return {"custom_logit_processor": processor, "custom_params": {REQUEST_KEY: _weights(table, latent).tolist()}}


def logit_bias_fields(
    table: LatentTable, latent: Any, entries: int = OPENAI_ENTRIES, counts: Tensor | None = None
) -> dict[str, Any]:
    """`logit_bias`; latents as `lpc_latent`, the rest as `logit_bias.logit_bias`.

    Raises:
        ValueError: there is no such latent.
    """
    bias = logit_bias(_weights(table, latent) @ table.values, entries, counts)
    return {"logit_bias": {str(token): value for token, value in bias.items()}}


def token_counts(folder: Path, files: Sequence[Path], vocab_size: int) -> Tensor:
    """[V] how often each token occurs in responses, their ends included; by the tokenizer of the export.

    Args:
        files: JSON lines with `chosen` and `rejected`, or `response`: texts, or lists of chat messages.

    Raises:
        ValueError: a file has no such text.
    """
    from transformers import AutoTokenizer

    texts = [list(_responses(file)) for file in files]
    for file, of_file in zip(files, texts, strict=True):
        if not of_file:
            raise ValueError(f"{file}: no line has {', '.join(_RESPONSES[:-1])} or {_RESPONSES[-1]}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    counts = torch.zeros(vocab_size)
    for of_file in texts:
        for text in of_file:
            tokens = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            counts += torch.bincount(torch.tensor(tokens), minlength=vocab_size)
    return counts


def _responses(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                for value in (row[name] for name in _RESPONSES if name in row):
                    yield value if isinstance(value, str) else value[-1]["content"]
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(f"{file}:{number}: is no JSON object with texts or chats as responses") from error


def _weights(table: LatentTable, latent: Any) -> Tensor:
    """[K] fp32."""
    weights = table.weights_of({REQUEST_KEY: latent})
    if weights is None:
        raise ValueError(f"{REQUEST_KEY}: is null; a request without a latent needs no field")
    return weights


def _latent(text: str) -> Any:
    """A number, a list, or else a name."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when something cannot work, and says why."""
    parser = argparse.ArgumentParser(prog=f"python -m {PACKAGE}.request", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path, help="folder of `convert_hf.py export --for-serving`")
    parser.add_argument("--latent", required=True, help="a code, weights such as [0.5,0.5], or a name")
    parser.add_argument(
        "--server", choices=("vllm", "sglang", "openai"), required=True, help="whose fields are printed"
    )
    parser.add_argument(
        "--entries", type=int, metavar="N", help=f"of --server openai: most entries of logit_bias ({OPENAI_ENTRIES})"
    )
    parser.add_argument(
        "--responses",
        type=Path,
        nargs="+",
        metavar="FILE.jsonl",
        help="of --server openai: responses (chosen and rejected, or response) whose frequent tokens matter most",
    )
    options = parser.parse_args(argv)
    if options.server != "openai" and (options.entries is not None or options.responses is not None):
        parser.error(f"--entries and --responses have no effect with --server {options.server}")
    if options.entries is not None and options.entries < 1:
        parser.error(f"--entries {options.entries}: must be at least 1")
    try:
        table = LatentTable(options.export)
        print(json.dumps(_fields(table, options)))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _fields(table: LatentTable, options: argparse.Namespace) -> dict[str, Any]:
    latent = _latent(options.latent)
    if options.server == "vllm":
        return {"vllm_xargs": {REQUEST_KEY: latent if latent in PRIOR_LATENTS else _weights(table, latent).tolist()}}
    if options.server == "sglang":
        return sglang_fields(table, latent)
    counts = None
    if options.responses is not None:
        counts = token_counts(options.export, options.responses, table.values.size(1))
    return logit_bias_fields(table, latent, options.entries or OPENAI_ENTRIES, counts)


if __name__ == "__main__":
    main()
