"""Counted work against independent counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_lpc.config import Config, LatentConfig, LossConfig, ModelConfig, TrainingConfig
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.platform import Platform
from megatron_lpc.training.mfu import batch_work, mfu, model_flops, peak_tflops

from ..model.visible import visible

CPU = Platform(torch.device("cpu"), "gloo")
MODEL = ModelConfig(
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=16,
    vocab_size=77,
)


def _config(latent_mode="none", loss_type="sft", **latent) -> Config:
    return Config(
        model=MODEL, latent=LatentConfig(latent_mode=latent_mode, **latent), loss=LossConfig(loss_type=loss_type)
    )


def test_flops_are_what_torch_counts_in_a_llama():
    llama = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=77,
    )
    model = LlamaForCausalLM(llama)
    model.set_attn_implementation("eager")
    length = 20
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    # Eager attention computes the square that the mask then hides: told as attended here.
    assert model_flops(_config(), (length, length, length**2, 1)) == 3 * counter.get_total_flops()


def test_a_token_counts_for_the_experts_that_it_meets():
    dense, layers, tokens = model_flops(_config(), (20, 10, 100, 2)), 3, 20
    experts = Config(
        model=replace(MODEL, num_experts=8, moe_router_topk=2),
        latent=LatentConfig(latent_mode="none"),
        loss=LossConfig(loss_type="sft"),
    )
    another_and_router = 3 * 32 * 48 + 32 * 8
    assert model_flops(experts, (20, 10, 100, 2)) - dense == 6 * layers * another_and_router * tokens


def test_a_reference_adds_a_forward_pass_where_there_is_one():
    work = (20, 10, 100, 2)
    alone = model_flops(_config(), work)
    assert model_flops(_config(loss_type="simpo"), work) == alone
    assert model_flops(_config(loss_type="dpo"), work) == pytest.approx(alone * 4 / 3)
    precomputed = Config(model=MODEL, latent=LatentConfig(latent_mode="none"), loss=LossConfig(reference="precomputed"))
    assert model_flops(precomputed, work) == alone


def test_a_frozen_backbone_has_a_forward_pass_or_none():
    work = (20, 10, 100, 2)
    latent = LatentConfig(codebook_size=8)

    def flops(**training):
        config = Config(model=MODEL, latent=latent, loss=LossConfig(), training=TrainingConfig(**training))
        return model_flops(config, work)

    plain = model_flops(_config(loss_type="simpo"), work)
    head = model_flops(Config(model=MODEL, latent=latent, loss=LossConfig(loss_type="simpo")), work) - plain
    assert flops(freeze_backbone=True) == pytest.approx(plain / 3 + head)
    lm_head = 2 * MODEL.hidden_size * MODEL.vocab_size * 10
    assert flops(freeze_backbone=True, cache_hidden_states="folder") == pytest.approx(lm_head + head)


@pytest.mark.parametrize(("posterior_input", "posterior_width"), [("concat", 2), ("difference", 1), ("bilinear", 3)])
def test_the_latent_head_counts_for_each_pair(posterior_input, posterior_width):
    config = _config("lpc", "simpo", codebook_size=8, latent_mlp_hidden_size=24, posterior_input=posterior_input)
    weights = 32 * 24 + 24 * 8 + posterior_width * 32 * 24 + 24 * 8 + 8 * 32
    assert (
        model_flops(config, (20, 10, 100, 5)) - model_flops(_config(loss_type="simpo"), (20, 10, 100, 5))
        == 6 * weights * 5
    )


def test_swap_guidance_asks_the_posterior_twice():
    work = (20, 10, 100, 5)
    plain, guided = (
        _config("lpc", "simpo", codebook_size=8, latent_mlp_hidden_size=24, swap_guidance_weight=weight)
        for weight in (0.0, 0.1)
    )
    assert model_flops(guided, work) - model_flops(plain, work) == 6 * (32 * 24 + 24 * 8) * 5


def test_flops_need_the_vocabulary_size():
    with pytest.raises(ValueError, match=r"model\.vocab_size is unset"):
        model_flops(Config(), (1, 1, 1, 1))


PAIRS = [EncodedPair([1] * 4, [2] * 2, [3] * 1), EncodedPair([1] * 1, [2] * 3, [3] * 7)]
"""Sequences of 6 and 5 tokens, of 4 and 8."""


@pytest.mark.parametrize("packing", [{}, {"pack_to": 40}])
def test_work_of_a_sequence_for_each_response(packing):
    batch = collate(PAIRS, [0, 1], [0, 1], pad_id=0, **packing)
    assert batch_work(batch).tolist() == [23, 13, 21 + 15 + 10 + 36, 2]
    windowed = sum(min(query + 1, 3) for length in (6, 5, 4, 8) for query in range(length))
    assert batch_work(batch, windows=[3]).tolist() == [23, 13, windowed, 2]
    mixed = batch_work(batch, windows=[3, 3, None])[2]
    assert mixed == (2 * windowed + 21 + 15 + 10 + 36) // 3


@pytest.mark.parametrize("packing", [{}, {"pack_to": 40}])
def test_a_shared_prompt_is_worked_on_once(packing):
    batch = collate(PAIRS, [0, 1], [0, 1], pad_id=0, share_prompt=True, **packing)
    assert batch_work(batch).tolist() == [23 - 4 - 1, 13, (21 + 15 - 10) + (10 + 36 - 1), 2]
    counts = visible(*batch.packing_layout.stacked, window=3)[batch.packing_layout.document_ids >= 0].sum()
    assert batch_work(batch, windows=[3])[2] == counts


def test_utilisation():
    assert mfu(flops=2e12, seconds=2.0, devices=4, peak_tflops=0.5) == 0.5


def test_peak_of_a_cpu_is_measured():
    assert 1e-4 < peak_tflops(CPU, bf16=False) < 100
    assert 1e-4 < peak_tflops(CPU, bf16=True) < 100


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L40S", 362.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peak_of_a_known_gpu_is_looked_up(name, peak, monkeypatch):
    monkeypatch.setattr(Platform, "name", property(lambda _: name))
    assert peak_tflops(Platform(torch.device("cuda"), "nccl"), bf16=True) == peak


@pytest.mark.parametrize(
    ("name", "bf16"), [("NVIDIA A10G", True), ("Some GPU", True), ("NVIDIA H100 80GB HBM3", False)]
)
def test_peak_of_an_unknown_gpu_or_precision_is_measured(name, bf16, monkeypatch):
    monkeypatch.setattr(Platform, "name", property(lambda _: name))
    monkeypatch.setattr("megatron_lpc.training.mfu._measured_tflops", lambda *_: -1.0)
    assert peak_tflops(Platform(torch.device("cuda"), "nccl"), bf16=bf16) == -1.0
