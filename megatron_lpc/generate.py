"""Responses of a run or an exported model under several latents, side by side.

    python -m megatron_lpc.generate --load RUN --prompt "Why is the sea salty?" --chat --latent prior --latent codes
    python -m megatron_lpc.generate --model EXPORT --prompts FILE.jsonl --latent prior --latent someone.safetensors

The tokens are chosen by transformers' `generate`; a run is exported to a temporary folder for it. Under the responses
stands how length and style change from latent to latent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from megatron_lpc.command_line import reports_errors
from megatron_lpc.files import write_text
from megatron_lpc.generation.columns import column_tables
from megatron_lpc.generation.latents import NamedLatent, named_latents
from megatron_lpc.generation.open_export import OpenExport, open_export
from megatron_lpc.generation.options import GenerateOptions, Sampling, parse_generate_command
from megatron_lpc.generation.prompts import Prompt, read_prompts
from megatron_lpc.generation.respond import Response, TerminalStreamer, padded_left, respond, respond_to_all
from megatron_lpc.generation.style import style_table
from megatron_lpc.terminal import wide_console


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when something cannot work, and says why."""
    with reports_errors():
        options = parse_generate_command(sys.argv[1:] if argv is None else argv)
        with open_export(options) as opened:
            _generate(options, opened)


def _generate(options: GenerateOptions, opened: OpenExport) -> None:
    prompts = read_prompts(options, opened)
    latents = named_latents(options, opened, partial(mean_prior, opened, prompts, options.sampling.batch_size))
    # A single column can be read while it grows.
    if len(latents) == 1 and options.prompts is None:
        responses = {latents[0].name: _streamed(opened, prompts, latents[0], options.sampling)}
    else:
        responses = respond_to_all(opened, prompts, latents, options.sampling)
        console = wide_console()
        for table in column_tables(prompts[: options.show], responses, console.width):
            console.print(table)
        console.print(style_table(responses))
    if options.output is not None:
        _write(options.output, prompts, responses)


def mean_prior(opened: OpenExport, prompts: Sequence[Prompt], batch_size: int) -> list[float]:
    """[K] probabilities of the codes, averaged over prompts."""
    sums = torch.zeros(opened.num_codes, dtype=torch.float64, device=opened.model.device)
    for start in range(0, len(prompts), batch_size):
        with torch.inference_mode():
            output = opened.model(**padded_left(opened, prompts[start : start + batch_size]), logits_to_keep=1)
        sums += output.code_weights.double().sum(0)
    return (sums / len(prompts)).tolist()


def _streamed(opened: OpenExport, prompts: Sequence[Prompt], latent: NamedLatent, sampling: Sampling) -> list[Response]:
    """Responses to one prompt after the other, printed while they grow."""
    torch.manual_seed(sampling.seed)
    responses = []
    for prompt in prompts:
        responses += respond(opened, [prompt], latent, sampling, TerminalStreamer(opened.tokenizer))
    return responses


def _write(path: Path, prompts: Sequence[Prompt], responses: Mapping[str, Sequence[Response]]) -> None:
    """One line of JSON per prompt and latent; the file appears whole."""
    lines = []
    for number, prompt in enumerate(prompts):
        for name, of_latent in responses.items():
            response = of_latent[number]
            line = {
                "prompt": prompt.content,
                "latent": name,
                "response": response.text,
                "num_tokens": response.num_tokens,
                "is_cut": response.is_cut,
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


if __name__ == "__main__":
    main()
