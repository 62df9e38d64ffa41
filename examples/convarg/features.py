"""What a predictor that only sees a text may go by: figures of its surface, and means of a language model's states.

    python -m examples.convarg.features --arguments runs/convarg/fold-0/all.jsonl --model runs/convarg/hf \
        --output runs/convarg/states.json

writes, for each argument, the mean over its tokens of the hidden states after a layer of a Hugging Face model, for
`mixture.py --states`. No label is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from examples.convarg.figures import Array
from examples.convarg.predictions import argument_names
from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.files import write_json
from megatron_lpc.terminal import progress


def surface(text: str) -> list[float]:
    """14 figures of a text: its length in three ways, punctuation, capitals, "I" and "you", links, other words."""
    words = text.split()
    return [
        float(np.log(len(text))),
        float(np.log(1 + len(words))),
        len(text),
        sum(map(len, words)) / len(words),
        text.count("\n"),
        sum(map(str.isupper, text)) / len(text),
        text.count(","),
        text.count("?"),
        text.count("!"),
        len(re.findall(r"\b(i|you|u)\b", text.lower())),
        float("http" in text),
        text.count('"'),
        float(text[0].islower()),
        len(set(words)) / len(words),
    ]


def arguments(rows: Iterable[dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Name (debate/argument), prompt and text of both arguments of each row of `prepare.py`."""
    for row in rows:
        for name, side in zip(argument_names(row), ("chosen", "rejected"), strict=True):
            yield name, row["prompt"], row[side]


def mean_states(model: Path, layer: int, of: Sequence[tuple[str, str, str]]) -> dict[str, list[float]]:
    """Name -> [H] mean over the tokens of a text, read after its prompt, of the hidden states after `layer` layers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    del network.layers[layer + 1 :]
    means = {}
    for name, prompt, text in progress(of, "Reading arguments"):
        before = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        tokens = tokenizer(prompt + text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            # The last of these would be after the final norm, so that there is one layer more than is read.
            states = network(tokens, output_hidden_states=True).hidden_states[layer]
        means[name] = states[0, before:].mean(0).tolist()
    return means


def principal_components(states: Array, is_training: Array, number: int) -> Array:
    """[A, number] the states [A, H] along their principal components in the training arguments, where the first has a
    standard deviation of 1 and the others have theirs relative to it."""
    mean, deviation = states[is_training].mean(0), states[is_training].std(0) + 1e-6
    scaled = (states - mean) / deviation
    _, sizes, directions = np.linalg.svd(scaled[is_training], full_matrices=False)
    found: Array = scaled @ directions[:number].T / (sizes[0] / np.sqrt(is_training.sum()))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--arguments", type=Path, required=True, help="all.jsonl of prepare.py")
        parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face model")
        parser.add_argument("--layer", type=int, default=15, help="layers after which states are read (15)")
        parser.add_argument("--output", type=Path, required=True, help="JSON to write")
        options = parser.parse_args(argv)
        rows = map(json.loads, options.arguments.read_text(encoding="utf-8").splitlines())
        distinct = {name: (name, prompt, text) for name, prompt, text in arguments(rows)}
        write_json(options.output, mean_states(options.model, options.layer, list(distinct.values())))


if __name__ == "__main__":
    main()
