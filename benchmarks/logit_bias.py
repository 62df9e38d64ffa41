"""What the truncated `logit_bias` of a latent costs, beside the latent itself.

    python -m benchmarks.logit_bias --export EXPORT --pairs held_out.jsonl --responses train.jsonl \\
        --latents brief verbose --output benchmarks/results/logit-bias.md

For every response token of the pairs, the next-token distribution under the latent is compared with that under the N
entries of its `logit_bias`: mean KL divergence in nats per token, and mean total variation. The entries are the
largest, or by the frequencies of their tokens in other responses. N = 0 is the policy without the latent: all that
there is to lose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.config import DataConfig
from megatron_lpc.convert.hub.latent_table import REQUEST_KEY, LatentTable
from megatron_lpc.convert.hub.logit_bias import logit_bias
from megatron_lpc.convert.hub.request import token_counts
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.preview import preview
from megatron_lpc.data.source import read_rows
from megatron_lpc.data.tokenizer import load_tokenizer
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table, progress

ENTRIES = (0, 10, 100, 300, 1000, 10_000)
WAYS = ("largest", "by frequency")
_MAX_LENGTH = 512


def biases(added: Tensor, counts: Tensor) -> dict[tuple[str, int], Tensor]:
    """(way, N) -> [V] what a server adds."""
    found = {}
    for entries in ENTRIES:
        for way, of_tokens in zip(WAYS, (None, counts), strict=True):
            found[way, entries] = torch.zeros_like(added)
            if entries:
                bias = logit_bias(added, entries, of_tokens)
                found[way, entries][list(bias)] = torch.tensor(list(bias.values()))
    return found


def response_logits(export: Path, data: str) -> Iterator[Tensor]:
    """[T, V] fp32 logits of the policy without a latent, at the response tokens of one response after the other."""
    config = DataConfig(max_length=_MAX_LENGTH)
    with input_errors():
        tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(export)))
        pairs = preview(read_rows(data), tokenizer, config).pairs
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    sequences = dict.fromkeys(
        (tuple(pair.kept.prompt), tuple(response))
        for pair in pairs
        for response in (pair.kept.chosen, pair.kept.rejected)
    )
    for prompt, response in progress(sequences, "Scoring", total=len(sequences)):
        with torch.inference_mode():
            yield model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when something cannot work, and says why."""
    parser = ArgumentParser(prog="python -m benchmarks.logit_bias", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", type=Path, required=True, help="of convert_hf.py export --for-serving")
    parser.add_argument("--pairs", required=True, help="preference pairs whose response tokens are measured")
    parser.add_argument(
        "--responses", type=Path, nargs="+", required=True, help="other pairs, for frequencies of tokens"
    )
    parser.add_argument("--latents", nargs="+", required=True, help="codes or names, as lpc_latent")
    parser.add_argument("--output", type=Path, required=True, help="file of Markdown")
    with reports_errors():
        options = parser.parse_args(argv)
        try:
            table = LatentTable(options.export)
            counts = token_counts(options.export, options.responses, table.values.size(1))
            weights = {
                name: table.weights_of({REQUEST_KEY: int(name) if name.isdecimal() else name})
                for name in options.latents
            }
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        added = {name: each @ table.values for name, each in weights.items() if each is not None}
        report = measure(response_logits(options.export, options.pairs), added, counts)
        write_text(options.output, report)
        print(report)


def measure(logits: Iterator[Tensor], added: dict[str, Tensor], counts: Tensor) -> str:
    """Markdown of what each bias costs, a table per latent.

    Args:
        logits: see `response_logits`.
        added: latent -> [V] what it adds.
        counts: [V] how often tokens occur.
    """
    added_instead = {name: biases(each, counts) for name, each in added.items()}
    divergences: defaultdict[tuple[str, str, int], float] = defaultdict(float)
    variations: defaultdict[tuple[str, str, int], float] = defaultdict(float)
    tokens = 0
    for of_response in logits:
        tokens += len(of_response)
        for name, each in added.items():
            exact = (of_response + each).log_softmax(-1)
            probabilities = exact.exp()
            for (way, entries), bias in added_instead[name].items():
                truncated = (of_response + bias).log_softmax(-1)
                divergences[name, way, entries] += float((probabilities * (exact - truncated)).sum())
                variations[name, way, entries] += float((probabilities - truncated.exp()).abs().sum()) / 2
    parts = [f"Mean KL divergence (nats) / total variation over {tokens} response tokens.\n"]
    for name in added:
        rows = [
            [entries, *(_cell(divergences[name, way, entries], variations[name, way, entries], tokens) for way in WAYS)]
            for entries in ENTRIES
        ]
        parts += [f"\n`{name}`\n\n", markdown_table(["entries", *WAYS], rows)]
    return "".join(parts)


def _cell(divergence: float, variation: float, tokens: int) -> str:
    return f"{divergence / tokens:.4f} / {variation / tokens:.3f}"


if __name__ == "__main__":
    main()
