"""Twenty steps of the trainer give the losses of a `transformers` Llama.

That one is trained by plain PyTorch with the same weights and data.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import run
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_lpc.data.batch import PairBatch

pytestmark = pytest.mark.distributed
VOCAB_SIZE, HIDDEN_SIZE, HEADS, GROUPS, LAYERS = 101, 32, 4, 2, 4
HEAD = HIDDEN_SIZE // HEADS
TOLERANCE = 2e-6
BETA = {"dpo": 0.1, "simpo": 2.0}
RECIPE = {"eps": 1e-5, "beta": 1.0, "decay": 0.1, "clip": 1.0, "warmup": 4}
"""`beta` is a factor on the objective's own."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on so small a model, and where cores are busy they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `trajectory_worker` wrote."""
    output = tmp_path_factory.mktemp("trajectory") / "ours.pt"
    run([sys.executable, str(Path(__file__).parent / "distributed" / "trajectory_worker.py"), str(output)])
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("case", BETA)
def test_same_losses(ours: dict[str, Any], case: str) -> None:
    losses, norms = _train(case, ours[case], RECIPE)
    assert ours[case]["losses"] == pytest.approx(losses, rel=TOLERANCE)
    assert ours[case]["norms"] == pytest.approx(norms, rel=TOLERANCE)
    assert max(norms) > RECIPE["clip"], "clipping is at work"
    assert losses[0] != pytest.approx(losses[-1], rel=0.01), "the losses move"


@pytest.mark.parametrize("case", BETA)
@pytest.mark.parametrize("wrong", [{"eps": 1e-6}, {"beta": 1.01}, {"decay": 0.0}, {"clip": 1e9}, {"warmup": 3}])
def test_another_recipe_gives_other_losses(ours: dict[str, Any], case: str, wrong: dict[str, float]) -> None:
    """The tolerance above is tight enough to tell."""
    losses, _ = _train(case, ours[case], RECIPE | wrong)
    assert ours[case]["losses"] != pytest.approx(losses, rel=10 * TOLERANCE)


def _train(case: str, ours: dict[str, Any], recipe: dict[str, float]) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of all steps."""
    policy = _llama(ours["weights"], recipe["eps"])
    reference = copy.deepcopy(policy).requires_grad_(False)
    matrices, vectors = ([p for p in policy.parameters() if (p.ndim > 1) == two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe["decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    losses, norms, total = [], [], len(ours["steps"])
    for step, batches in enumerate(ours["steps"]):
        loss = torch.cat([_loss(case, policy, reference, PairBatch(**batch), recipe) for batch in batches]).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), recipe["clip"])))
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, total, recipe["warmup"])
        optimizer.step()
    return losses, norms


def _learning_rate(step: int, total: int, warmup: float) -> float:
    """Linear from 0, then a cosine from 1e-3 to 1e-4; Megatron-LM's first step has the rate 0."""
    if step <= warmup:
        return 1e-3 * step / warmup
    return 1e-4 + 0.9e-3 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def _loss(
    case: str, policy: LlamaForCausalLM, reference: LlamaForCausalLM, batch: PairBatch, recipe: dict[str, float]
) -> Tensor:
    """[B]"""
    beta = recipe["beta"] * BETA[case]
    chosen, rejected = _response_logps(policy, batch).chunk(2)
    if case == "dpo":
        with torch.no_grad():
            reference_chosen, reference_rejected = _response_logps(reference, batch).chunk(2)
        return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))
    length_chosen, length_rejected = batch.response_length.chunk(2)
    return -logsigmoid(beta * (chosen / length_chosen - rejected / length_rejected) - 0.5)


def _response_logps(model: LlamaForCausalLM, batch: PairBatch) -> Tensor:
    """[2B]"""
    logps = log_softmax(model(batch.tokens).logits.flatten(0, 1)[batch.loss_index], dim=-1)
    each = logps.gather(1, batch.targets[:, None])[:, 0]
    return torch.zeros(2 * batch.num_pairs).index_add(0, batch.segment_ids, each)


def _llama(weights: dict[str, Tensor], eps: float) -> LlamaForCausalLM:
    tied = "output_layer.weight" not in weights
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            rms_norm_eps=eps,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
        )
    )
    # Without the token ids that only pad the vocabulary.
    mapped = {"model.embed_tokens.weight": weights["embedding.word_embeddings.weight"][:VOCAB_SIZE]}
    mapped["lm_head.weight"] = (
        mapped["model.embed_tokens.weight"] if tied else weights["output_layer.weight"][:VOCAB_SIZE]
    )
    mapped["model.norm.weight"] = weights["decoder.final_layernorm.weight"]
    for layer in range(LAYERS):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        per_group = weights[ours + "self_attention.linear_qkv.weight"].view(GROUPS, -1, HIDDEN_SIZE)
        query, key, value = per_group.split([HEADS // GROUPS * HEAD, HEAD, HEAD], dim=1)
        gate, up = weights[ours + "mlp.linear_fc1.weight"].chunk(2)
        mapped |= {
            theirs + "input_layernorm.weight": weights[ours + "input_layernorm.weight"],
            theirs + "self_attn.q_proj.weight": query.reshape(-1, HIDDEN_SIZE),
            theirs + "self_attn.k_proj.weight": key.reshape(-1, HIDDEN_SIZE),
            theirs + "self_attn.v_proj.weight": value.reshape(-1, HIDDEN_SIZE),
            theirs + "self_attn.o_proj.weight": weights[ours + "self_attention.linear_proj.weight"],
            theirs + "post_attention_layernorm.weight": weights[ours + "pre_mlp_layernorm.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": weights[ours + "mlp.linear_fc2.weight"],
        }
    model.load_state_dict(mapped)
    return model
