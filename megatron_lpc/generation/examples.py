"""Examples of a checkpoint, for a run that waits for them: `python -m megatron_lpc.generation.examples < JOB`.

A process of its own: it leaves the memory, the random generators and the settings of the run alone.

The job is JSON:
    checkpoint   folder of one checkpoint
    prompts      {validation set: token ids of each prompt}
    usage        [K] how much each code is used; [] for a model without codes
    max_tokens   of a response
    on_gpu       whether to use a GPU that has room
    output       JSON lines to write: `evaluation` (the validation set) and the fields of `Generated`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.files import write_text
from megatron_lpc.generation.latents import NamedLatent, active_codes
from megatron_lpc.generation.open_export import OpenExport, open_export
from megatron_lpc.generation.options import GenerateOptions, Sampling
from megatron_lpc.generation.prompts import Prompt
from megatron_lpc.generation.respond import respond_to_all
from megatron_lpc.training.generated import Generated

_MOST_CODES = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Do the job on standard input. Exits with 2 when it cannot be done, and says why."""
    ArgumentParser(
        prog="python -m megatron_lpc.generation.examples",
        description="Examples of a checkpoint, for a run that waits for them: reads what to do as JSON.",
    ).parse_args(argv)
    job = json.load(sys.stdin)
    options = GenerateOptions(
        load=Path(job["checkpoint"]),
        model=None,
        latents=(),
        max_codes=_MOST_CODES,
        texts=(),
        prompts=None,
        num_prompts=None,
        chat=False,
        show=0,
        output=None,
        device="cuda" if job["on_gpu"] and _fits_on_gpu(Path(job["checkpoint"])) else "cpu",
        trust_remote_code=job["trust_remote_code"],
        sampling=Sampling(max_new_tokens=job["max_tokens"]),
    )
    with reports_errors(), open_export(options) as opened:
        write_text(job["output"], "".join(_lines(job, opened, options)))


def _lines(job: dict[str, Any], opened: OpenExport, options: GenerateOptions) -> list[str]:
    latents = _latents(opened, job["usage"])
    lines = []
    for name, token_ids in job["prompts"].items():
        prompts = [Prompt(opened.tokenizer.decode(ids), ids) for ids in token_ids]
        responses = respond_to_all(opened, prompts, latents, options.sampling)
        for number, prompt in enumerate(prompts):
            for latent in latents:
                response = responses[latent.name][number]
                generated = Generated(prompt=prompt.text, latent=latent.name, **_fields(response))
                lines.append(json.dumps({"evaluation": name} | asdict(generated), ensure_ascii=False) + "\n")
    return lines


def _latents(opened: OpenExport, usage: list[float]) -> list[NamedLatent]:
    if not opened.has_head:
        return [NamedLatent("none", "none")]
    codes = active_codes([usage], _MOST_CODES) if opened.num_codes else []
    return [NamedLatent("prior", "mean"), *(NamedLatent(f"code:{code}", code) for code in codes)]


def _fields(response: Any) -> dict[str, Any]:
    return {"response": response.text, "num_tokens": response.num_tokens, "is_cut": response.is_cut}


def _fits_on_gpu(checkpoint: Path) -> bool:
    """Whether a GPU has room for half as much again as the weights, beside the run that it is of."""
    if not torch.cuda.is_available():
        return False
    tensors = MegatronFolder(checkpoint).tensors.values()
    weights = sum(tensor.nbytes for tensor in tensors)
    return torch.cuda.mem_get_info()[0] > 1.5 * weights


if __name__ == "__main__":
    main()
