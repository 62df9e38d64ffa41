"""Counted work against independent counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_lpc.config import Config, LatentConfig, LossConfig, ModelConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.platform import Platform
from megatron_lpc.training.mfu import batch_work, mfu, model_flops, peak_tflops

CPU = Platform(torch.device("cpu"), "gloo")
MODEL = ModelConfig(
    num_layers=3, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, kv_channels=16, vocab_size=77
)


def _config(latent_mode="none", loss_type="sft", **latent) -> Config:
    return Config(model=MODEL, latent=LatentConfig(latent_mode=latent_mode, **latent), loss=LossConfig(loss_type=loss_type))


def _batch(rows: int, columns: int, ends: list[int], response_length: list[int], mask: torch.Tensor | None = None) -> PairBatch:
    pairs, none = len(ends) // 2, torch.zeros(0, dtype=torch.int64)
    return PairBatch(
        tokens=torch.zeros(rows, columns, dtype=torch.int64),
        position_ids=torch.arange(columns).expand(rows, -1),
        attention_mask=mask,
        prompt_end=torch.zeros(pairs, dtype=torch.int64),
        response_end=torch.tensor(ends),
        loss_index=none,
        loss_target=none,
        loss_segment=none,
        response_length=torch.tensor(response_length),
        sample_ids=torch.arange(pairs),
        row_ids=torch.arange(pairs),
    )


def test_flops_are_what_torch_counts_in_a_llama():
    llama = LlamaConfig(
        num_hidden_layers=3, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=77
    )
    model = LlamaForCausalLM(llama)
    model.set_attn_implementation("eager")
    length = 20
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    # Eager attention computes the square that the mask then hides: told as attended here.
    assert model_flops(_config(), (length, length, length**2, 1)) == 3 * counter.get_total_flops()


def test_a_reference_adds_a_forward_pass_where_there_is_one():
    work = (20, 10, 100, 2)
    alone = model_flops(_config(), work)
    assert model_flops(_config(loss_type="simpo"), work) == alone
    assert model_flops(_config(loss_type="dpo"), work) == pytest.approx(alone * 4 / 3)
    precomputed = Config(model=MODEL, latent=LatentConfig(latent_mode="none"), loss=LossConfig(reference="precomputed"))
    assert model_flops(precomputed, work) == alone


@pytest.mark.parametrize(("posterior_input", "posterior_width"), [("concat", 2), ("difference", 1), ("bilinear", 3)])
def test_the_latent_head_counts_for_each_pair(posterior_input, posterior_width):
    config = _config("lpc", "simpo", codebook_size=8, latent_mlp_hidden_size=24, posterior_input=posterior_input)
    weights = 32 * 24 + 24 * 8 + posterior_width * 32 * 24 + 24 * 8 + 8 * 32
    assert model_flops(config, (20, 10, 100, 5)) - model_flops(_config(loss_type="simpo"), (20, 10, 100, 5)) == 6 * weights * 5


def test_flops_need_the_vocabulary_size():
    with pytest.raises(ValueError, match=r"model\.vocab_size is unset"):
        model_flops(Config(), (1, 1, 1, 1))


def test_work_of_a_batch_with_a_row_for_each_response():
    # Two pairs; rows of 6, 5 (chosen), 4, 8 (rejected) tokens in 8 columns.
    batch = _batch(4, 8, [5, 8 + 4, 16 + 3, 24 + 7], [2, 1, 3, 4])
    assert batch_work(batch).tolist() == [23, 10, 21 + 15 + 10 + 36, 2]
    windowed = sum(min(query + 1, 3) for length in (6, 5, 4, 8) for query in range(length))
    assert batch_work(batch, sliding_window=3).tolist() == [23, 10, windowed, 2]


def test_work_of_a_batch_whose_responses_share_a_prompt():
    # One row: prompt 0-2, chosen 3-4, rejected 5-7, two columns of padding that attend to themselves.
    mask = torch.ones(10, 10).tril().bool()
    mask[5:8, 3:5] = False
    batch = _batch(1, 10, [4, 7], [2, 3], mask[None, None])
    assert batch_work(batch).tolist() == [8, 5, (1 + 2 + 3) + (4 + 5) + (4 + 5 + 6), 1]


def test_work_of_an_empty_row_is_nothing():
    assert batch_work(_batch(3, 4, [1, 4 + 2], [1, 1])).tolist() == [5, 2, 3 + 6, 1]


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


@pytest.mark.parametrize(("name", "bf16"), [("NVIDIA A10G", True), ("Some GPU", True), ("NVIDIA H100 80GB HBM3", False)])
def test_peak_of_an_unknown_gpu_or_precision_is_measured(name, bf16, monkeypatch):
    monkeypatch.setattr(Platform, "name", property(lambda _: name))
    monkeypatch.setattr("megatron_lpc.training.mfu._measured_tflops", lambda *_: -1.0)
    assert peak_tflops(Platform(torch.device("cuda"), "nccl"), bf16=bf16) == -1.0
