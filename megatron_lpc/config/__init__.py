"""Options of a run: the schema, the way from YAML and flags to a `Config`, and the rules between options."""

from megatron_lpc.config.canonical import canonical, no_rope_freq, window_attn_skip_freq
from megatron_lpc.config.derived import (
    data_parallel_size,
    head_width,
    layer_windows,
    layers_without_rope,
    model_parallel_size,
    num_microbatches,
    padded_vocab_size,
    samples_codes,
    seq_len_multiple,
)
from megatron_lpc.config.load import load_yaml, parse_args
from megatron_lpc.config.metadata import Role
from megatron_lpc.config.options import (
    ConfigError,
    all_options,
    hf_settings,
    options_of_conversion,
    options_of_evaluation,
    options_with_role,
    shown,
    training_only_options,
    with_defaults,
    with_options,
)
from megatron_lpc.config.query_groups import padded_heads, with_padded_query_groups
from megatron_lpc.config.resolved import print_config, save_resolved
from megatron_lpc.config.saved_options import saved_model, saved_section
from megatron_lpc.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LatentConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_lpc.config.validate import (
    validate,
    validate_data,
    validate_episodes,
    validate_values,
    validate_vocab,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LatentConfig",
    "LoggingConfig",
    "LossConfig",
    "ModelConfig",
    "ParallelConfig",
    "Role",
    "TrainingConfig",
    "all_options",
    "canonical",
    "data_parallel_size",
    "head_width",
    "hf_settings",
    "layer_windows",
    "layers_without_rope",
    "load_yaml",
    "model_parallel_size",
    "no_rope_freq",
    "num_microbatches",
    "options_of_conversion",
    "options_of_evaluation",
    "options_with_role",
    "padded_heads",
    "padded_vocab_size",
    "parse_args",
    "print_config",
    "samples_codes",
    "save_resolved",
    "saved_model",
    "saved_section",
    "seq_len_multiple",
    "shown",
    "training_only_options",
    "validate",
    "validate_data",
    "validate_episodes",
    "validate_values",
    "validate_vocab",
    "window_attn_skip_freq",
    "with_defaults",
    "with_options",
    "with_padded_query_groups",
]
