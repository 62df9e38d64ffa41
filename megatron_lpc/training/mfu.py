"""Model FLOPs utilisation: the work that the algorithm demands, over the work that the devices could have done.

Convention (that of PaLM, arXiv 2204.02311, appendix B): a product with a weight matrix costs 2 FLOPs per weight and
token forward and twice that backward, so 6 in all; attention's two products count the query-key pairs that the causal
mask lets through. The LM head counts only for response tokens, the LPC head per pair. A reference in the run adds a
forward pass; a frozen backbone and its LM head have only one. Padding, recomputed activations and the padding of the
vocabulary are not demanded work, and do not count.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_lpc.config import Config, LatentConfig, ModelConfig, head_width
from megatron_lpc.config.gaussian_head_sizes import gaussian_head_sizes
from megatron_lpc.config.latent_head_sizes import latent_head_sizes
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.costs import causal_query_key_pairs
from megatron_lpc.losses import uses_reference
from megatron_lpc.platform import Platform

_FORWARD, _FORWARD_BACKWARD = 2, 6

# Dense bf16 tensor-core peaks in TFLOPS, from the makers' data sheets. The first pattern found in the device's name
# counts.
_PEAK_BF16 = {
    r"GB200": 2500.0,
    r"B200": 2250.0,
    r"H100 NVL|H200 NVL": 835.5,
    r"H100 PCIe": 756.5,
    r"H100|H200|GH200|H800": 989.4,
    r"H20\b": 148.0,
    r"A100|A800": 312.0,
    r"A40\b": 149.7,
    r"A30\b": 165.0,
    r"A10\b": 125.0,
    r"L40S": 362.0,
    r"L40\b": 181.0,
    r"L4\b": 121.0,
    r"MI300X|MI325X": 1307.4,
}


def batch_work(batch: PairBatch, windows: Sequence[int | None] = (None,)) -> Tensor:
    """[4] int64 on the batch's device: tokens, response tokens, attended query-key pairs, preference pairs.

    Without waiting for the device. These are sums, so they add over micro-batches and data parallel ranks.

    Args:
        windows: tokens a query may attend to, of each layer; attended pairs are the mean over layers, rounded down.
    """
    prompt_length, is_shared = _prompts(batch)
    whole_length = prompt_length.repeat(2) + batch.response_length
    # Both responses count their prompt, but a shared one is computed once.
    tokens = whole_length.sum() - (is_shared * prompt_length).sum()
    attended = torch.zeros_like(tokens)
    for window, layers in Counter(windows).items():
        by_prompt = causal_query_key_pairs(prompt_length, window)
        attended += layers * (causal_query_key_pairs(whole_length, window).sum() - (is_shared * by_prompt).sum())
    attended //= len(windows)
    num_pairs = torch.full_like(tokens, batch.num_pairs)
    return torch.stack([tokens, batch.response_length.sum(), attended, num_pairs])


def model_flops(config: Config, work: tuple[int, int, int, int]) -> float:
    """FLOPs that training on `work` (the numbers of `batch_work`) demands, over all ranks.

    Raises:
        ValueError: the vocabulary size is not yet known.
    """
    model, (tokens, response_tokens, attended, pairs) = config.model, work
    if model.vocab_size is None:
        raise ValueError("model.vocab_size is unset; take the tokenizer's before FLOPs are counted")
    backbone = model.num_layers * _layer_weights(config) * (tokens + attention_cost(config) * attended)
    if config.training.cache_hidden_states is not None:
        backbone = 0.0
    policy = backbone + model.hidden_size * model.vocab_size * response_tokens
    if config.training.freeze_backbone:
        return _FORWARD * policy + _FORWARD_BACKWARD * _latent_weights(config.latent, model) * pairs
    has_reference_pass = uses_reference(config.loss) and config.loss.reference == "online"
    reference = policy if has_reference_pass else 0
    return _FORWARD_BACKWARD * (policy + _latent_weights(config.latent, model) * pairs) + _FORWARD * reference


def _prompts(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Of each pair: the tokens of its prompt, [B] int64, and whether both responses share it, [B] bool."""
    packing_layout = batch.packing_layout
    if packing_layout is None:
        last_position = batch.prompt_end % batch.tokens.size(1)
        return last_position + 1, torch.zeros_like(last_position, dtype=torch.bool)
    last_position = packing_layout.position_ids.flatten()[batch.prompt_end]
    return last_position + 1, packing_layout.is_shared_prompt(batch.prompt_end)


def attention_cost(config: Config) -> float:
    """Work of attention for one query-key pair, where a token's passage through the weights of a layer is 1."""
    return 2 * config.model.num_attention_heads * head_width(config.model) / _layer_weights(config)


def mfu(flops: float, seconds: float, devices: int, peak_tflops: float) -> float:
    """Share of the peak of `devices` devices, each of `peak_tflops`, that `flops` in `seconds` makes use of."""
    return flops / (seconds * devices * peak_tflops * 1e12)


def peak_tflops(platform: Platform, bf16: bool) -> float:
    """Peak of one device in TFLOPS.

    The data sheet's for bf16 on a known GPU, else measured by a short matrix product.
    """
    known = known_peak_tflops(platform.name) if bf16 and platform.is_cuda else None
    return known or _measured_tflops(platform, torch.bfloat16 if bf16 else torch.float32)


def known_peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a GPU in TFLOPS, from its data sheet; None for one that is not known."""
    return next((peak for pattern, peak in _PEAK_BF16.items() if re.search(rf"\b({pattern})", device_name)), None)


def _layer_weights(config: Config) -> int:
    model, width = config.model, head_width(config.model)
    groups = model.num_query_groups or model.num_attention_heads
    attention = model.hidden_size * width * (2 * model.num_attention_heads + 2 * groups)
    mlp = 3 * model.hidden_size * model.ffn_hidden_size
    if model.num_experts is not None:  # The experts that a token is routed to, and the router.
        mlp = model.moe_router_topk * mlp + model.hidden_size * model.num_experts
    return attention + mlp


def _latent_weights(latent: LatentConfig, model: ModelConfig) -> int:
    """Elements of the latent head's matrices that a pair is multiplied with; the continuous control has as many."""
    if latent.latent_mode in ("none", "embedding"):
        return 0
    if latent.latent_mode == "gaussian":
        return gaussian_head_sizes(latent, model.hidden_size).num_matrix_elements
    sizes = latent_head_sizes(latent, model.hidden_size)
    # Swap guidance asks the posterior network of each pair a second time.
    return sizes.num_matrix_elements + (sizes.num_posterior_elements if latent.swap_guidance_weight else 0)


def _measured_tflops(platform: Platform, dtype: torch.dtype) -> float:
    # A CPU without bf16 units needs seconds for what a GPU does in microseconds.
    size = 8192 if platform.is_cuda else 256
    a, b = (torch.ones(size, size, dtype=dtype, device=platform.device) for _ in range(2))
    seconds = []
    for _ in range(4):  # The first warms up: the fastest counts.
        platform.synchronize()
        start = time.perf_counter()
        a @ b
        platform.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12
