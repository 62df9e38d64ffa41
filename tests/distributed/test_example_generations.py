"""`--eval-generations`: what a run on two processes shows of its codes is what its checkpoints generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import torchrun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.data.tokenizer import load_tokenizer

pytestmark = pytest.mark.distributed
SETS = ("agree", "disagree")
PIPELINE = ("--pipeline-model-parallel-size", "2", "--latent-inference", "exact")
LAYOUTS = [
    pytest.param(PIPELINE, id="pipeline"),
    pytest.param(("--tensor-model-parallel-size", "2", "--async-save"), id="tensor", marks=pytest.mark.slow),
    pytest.param(("--use-distributed-optimizer",), id="data", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_examples_of_two_evaluations(tiny_run: Any, tmp_path: Path, layout: tuple[str, ...]) -> None:
    save = tmp_path / "run"
    flags = [
        "--train-iters",
        "3",
        "--eval-interval",
        "2",
        "--save-interval",
        "2",
        "--tensorboard",
        "--latent-lr",
        "0.1",
    ]
    flags += ["--codebook-init-std", "2", "--eval-generations", "2", "--eval-generation-tokens", "5"]
    torchrun(2, "-m", "megatron_lpc.train", "--config", tiny_run.config, "--save", str(save), *flags, *layout)
    events = EventAccumulator(str(save / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    events.Reload()
    for iteration in (2, 3):
        lines = [json.loads(line) for line in (save / "generations" / f"iter_{iteration:07d}.jsonl").open()]
        assert {line["evaluation"] for line in lines} == set(SETS)
        _are_of_checkpoint(lines, save / f"iter_{iteration:07d}", tmp_path / f"hf-{iteration}", tiny_run)
    for name in SETS:
        texts = events.Tensors(f"eval/{name}/generations/2/text_summary")
        assert [text.step for text in texts] == [2, 3]
        shown = texts[-1].tensor_proto.string_val[0].decode()
        ours = [line for line in lines if line["evaluation"] == name]
        assert all(f"**{line['latent']}** ({line['num_tokens']} tokens" in shown for line in ours)
        assert ours[-1]["response"].strip() in shown
        usage = events.Histograms(f"eval/{name}/lpc/usage/posterior")
        assert [event.step for event in usage] == [2, 3]
        assert usage[0].histogram_value.num == pytest.approx(_pairs_of(tiny_run, name))
    head = LPCForCausalLM.from_pretrained(tmp_path / "hf-3").latent_head
    norms = (head.code_unit * head.codebook).norm(dim=-1)
    found = events.Histograms("eval/agree/lpc/codebook_norm")[-1].histogram_value
    assert (found.min, found.max) == pytest.approx((float(norms.min()), float(norms.max())), rel=1e-4)


def _pairs_of(tiny_run: Any, name: str) -> int:
    return len((tiny_run.folder / f"test_{name}.jsonl").read_text().splitlines())


def _are_of_checkpoint(lines: list[dict[str, Any]], checkpoint: Path, export: Path, tiny_run: Any) -> None:
    """Every response is what transformers generates from the checkpoint, greedily and one by one."""
    export_hf(checkpoint, export)
    model = LPCForCausalLM.from_pretrained(export).eval()
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(tiny_run.folder / "words.model")))
    latents = {line["latent"] for line in lines}
    assert "prior" in latents
    assert 1 < len(latents) <= 1 + 6, "active codes"
    for line in lines:
        prompt = tokenizer.encode(line["prompt"], add_bos=True)
        latent = "mean" if line["latent"] == "prior" else int(line["latent"].removeprefix("code:"))
        tokens = model.generate(
            torch.tensor([prompt]), latent=latent, max_new_tokens=5, do_sample=False, eos_token_id=tokenizer.eos_id
        )
        new = tokens[0, len(prompt) :].tolist()
        assert line["is_cut"] == (tokenizer.eos_id not in new)
        kept = [token for token in new if token != tokenizer.eos_id]
        assert (line["response"], line["num_tokens"]) == (tokenizer.decode(kept), len(kept))
