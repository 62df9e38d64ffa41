"""Numbers that follow from the options, defined once for everything that needs them."""

from __future__ import annotations

import math

from megatron_lpc.config.schema import Config, LatentConfig, ModelConfig


def model_parallel_size(config: Config) -> int:
    """Processes that hold one copy of the model."""
    return config.parallel.tensor_model_parallel_size * config.parallel.pipeline_model_parallel_size


def data_parallel_size(config: Config, world_size: int) -> int:
    """Copies of the model among `world_size` processes; `validate` refuses a remainder."""
    return world_size // model_parallel_size(config)


def num_microbatches(config: Config, world_size: int) -> int:
    """Micro-batches of one data parallel rank in one optimizer step; `validate` refuses a remainder."""
    return config.training.global_batch_size // (
        config.training.micro_batch_size * data_parallel_size(config, world_size)
    )


def fp8_multiple(config: Config) -> int:
    """What must divide the sizes of TransformerEngine's FP8 products on each rank; 1 without FP8.

    Every product needs 16, `mxfp8` whole blocks of 32, and `blockwise` of 128 where ranks gather quantized shards.
    """
    if config.training.fp8_format is None:
        return 1
    return {"tensorwise": 16, "blockwise": 128, "mxfp8": 32}[config.training.fp8_recipe]


def seq_len_multiple(config: Config) -> int:
    """What must divide the length of sequences: sequence parallelism splits them, and FP8 needs whole blocks."""
    parallel = config.parallel
    shards = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return shards * fp8_multiple(config)


def head_width(model: ModelConfig) -> int:
    """Size of one attention head."""
    return model.kv_channels or model.hidden_size // model.num_attention_heads


def layer_windows(model: ModelConfig) -> list[int | None]:
    """The sliding window of each layer, in tokens; None: the layer has none."""
    skipped = _every_nth(model.window_attn_skip_freq, model.num_layers)
    if skipped is None:
        skipped = [flag == 0 for flag in model.window_attn_skip_freq or [1] * model.num_layers]
    return [None if skip else model.sliding_window for skip in skipped]


def layers_without_rope(model: ModelConfig) -> list[bool]:
    """Whether each layer goes without rotary position embedding."""
    skipped = _every_nth(model.no_rope_freq, model.num_layers)
    if skipped is None:
        skipped = [flag == 1 for flag in model.no_rope_freq or [0] * model.num_layers]
    return skipped


def _every_nth(frequency: list[int] | None, num_layers: int) -> list[bool] | None:
    """True for every Nth layer, where the frequency is one number N; None where it says something of each layer."""
    if frequency is None or len(frequency) != 1:
        return None
    return [number % frequency[0] == 0 for number in range(1, num_layers + 1)]


def padded_vocab_size(config: Config, vocab_size: int) -> int:
    """Rows of the embedding for `vocab_size` token ids."""
    multiple = config.model.make_vocab_size_divisible_by
    return math.ceil(vocab_size / multiple) * multiple


def samples_codes(latent: LatentConfig) -> bool:
    """Whether training draws relaxed samples of codes, for which alone there is a latent schedule."""
    return latent.latent_mode == "lpc" and latent.latent_inference == "amortized"
