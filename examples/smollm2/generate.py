"""What the codes make of the same prompts: greedy responses of an export, and their mean length.

    python examples/smollm2/generate.py --model runs/smollm2/export --report runs/smollm2/report.json \
        --data runs/smollm2/data/held_out.jsonl

Latents are the prior's mean, the codes that the annotators use most (`--codes 64`: each of 64), and the mixture that
the support set of each annotator gave (`--report`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_lpc.terminal import markdown_table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of an export with the LPC head")
    parser.add_argument("--report", type=Path, required=True, help="what `megatron_lpc.evaluate --output` wrote")
    parser.add_argument("--data", type=Path, required=True, help="JSONL whose prompts are answered")
    parser.add_argument("--prompts", type=int, default=8, help="how many of them (default: 8)")
    parser.add_argument("--codes", type=int, default=8, help="how many codes, the most used ones (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest response (default: 64)")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left", trust_remote_code=True)
    batch = tokenizer.apply_chat_template(
        prompts(options.data, options.prompts),
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    rows = []
    for name, latent in latents(options.report, options.codes).items():
        count = batch["input_ids"].shape[0]
        value = torch.tensor([latent] * count) if isinstance(latent, list) else latent
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=options.max_new_tokens, do_sample=False, latent=value)
        responses = output[:, batch["input_ids"].shape[1] :]
        lengths = (responses != tokenizer.pad_token_id).sum(1).float()
        text = tokenizer.decode(responses[0], skip_special_tokens=True)
        rows.append([name, f"{lengths.mean():.1f}", " ".join(text.split())])
    print(markdown_table(["latent", "mean tokens", "response to the first prompt"], rows), end="")


def prompts(data: Path, count: int) -> list[list[dict[str, str]]]:
    """The first `count` different prompts of a file, as chat messages."""
    found: list[list[dict[str, str]]] = []
    for line in data.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        if prompt not in found:
            found.append(prompt)
    return found[:count]


def latents(report: Path, num_codes: int) -> dict[str, Any]:
    """Name -> `latent` of `generate`; of the codes those of most weight in the support of some annotator."""
    (held_out,) = json.loads(report.read_text(encoding="utf-8"))["data"].values()
    groups = held_out["support"]["groups"]
    mixtures = {f"support of {name}": group["mixture"] for name, group in groups.items()}
    most = [max(weights) for weights in zip(*mixtures.values(), strict=True)]
    codes = sorted(range(len(most)), key=lambda code: -most[code])[:num_codes]
    return {"mean": "mean", **{f"code {code}": code for code in sorted(codes)}, **mixtures}


if __name__ == "__main__":
    main()
