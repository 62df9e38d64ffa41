"""The range of every numeric option, in the notation of intervals."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from megatron_lpc.config.options import all_options
from megatron_lpc.config.schema import Config

RANGES = {
    "num_layers": "[1, inf)",
    "hidden_size": "[1, inf)",
    "ffn_hidden_size": "[1, inf)",
    # One expert would be chosen by every token.
    "num_experts": "[2, inf)",
    "moe_router_topk": "[1, inf)",
    "num_attention_heads": "[1, inf)",
    "num_query_groups": "[1, inf)",
    "kv_channels": "[1, inf)",
    "max_position_embeddings": "[2, inf)",
    "vocab_size": "[2, inf)",
    "make_vocab_size_divisible_by": "[1, inf)",
    "norm_epsilon": "(0, inf)",
    "rotary_base": "[1, inf)",
    "rotary_percent": "(0, 1]",
    "rotary_seq_len_interpolation_factor": "[1, inf)",
    "rope_scaling_factor": "[1, inf)",
    "sliding_window": "[1, inf)",
    "init_method_std": "(0, inf)",
    "attention_dropout": "[0, 1)",
    "hidden_dropout": "[0, 1)",
    # One code would be a constant: there is nothing to choose, and its KL is always 0.
    "codebook_size": "[2, inf)",
    "codebook_init_std": "[0, inf)",
    "latent_mlp_hidden_size": "[1, inf)",
    "gumbel_tau": "(0, inf)",
    "gumbel_tau_final": "(0, inf)",
    "prior_mix_initial": "[0, 1]",
    "prior_mix_final": "[0, 1]",
    "kl_weight": "[0, inf)",
    "kl_warmup_iters": "[0, inf)",
    "kl_free_bits": "[0, inf)",
    "usage_entropy_weight": "[0, inf)",
    "beta": "(0, inf)",
    # Robust DPO divides by 1 - 2 e, and at one half a label says nothing.
    "label_smoothing": "[0, 0.5)",
    "rpo_alpha": "[0, inf)",
    "simpo_gamma": "[0, inf)",
    "logps_chunk_size": "[1, inf)",
    "shuffle_buffer_size": "[1, inf)",
    "pack_to": "[1, inf)",
    "max_length": "[2, inf)",
    "max_prompt_length": "[1, inf)",
    "tensor_model_parallel_size": "[1, inf)",
    "pipeline_model_parallel_size": "[1, inf)",
    "num_virtual_stages_per_pipeline_rank": "[2, inf)",
    "recompute_num_layers": "[1, inf)",
    "distributed_timeout_minutes": "[1, inf)",
    "micro_batch_size": "[1, inf)",
    "global_batch_size": "[1, inf)",
    "train_iters": "[1, inf)",
    "num_train_epochs": "(0, inf)",
    "seed": "[0, 4294967295]",
    "lr": "[0, inf)",
    "min_lr": "[0, inf)",
    "latent_lr": "[0, inf)",
    "lr_warmup_fraction": "[0, 1]",
    "weight_decay": "[0, inf)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_eps": "(0, inf)",
    "clip_grad": "[0, inf)",
    "max_bad_steps": "[0, inf)",
    "save_interval": "[0, inf)",
    "keep_last": "[0, inf)",
    "log_interval": "[1, inf)",
    "eval_interval": "[0, inf)",
    "eval_iters": "[1, inf)",
    "peak_tflops": "(0, inf)",
}


def out_of_range(config: Config) -> Iterator[str]:
    """A sentence for every numeric option whose value is outside of its range; unset options are not looked at."""
    for name, interval in RANGES.items():
        option = all_options()[name]
        value = getattr(getattr(config, option.section), name)
        if value is not None and not _inside(value, interval):
            yield f"{option.flag} {value}: must be in {interval}"


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low or (value == low and interval[0] == "[")
    return above and (value < high or (value == high != inf and interval[-1] == "]"))
