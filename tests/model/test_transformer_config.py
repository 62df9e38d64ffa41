"""megatron-core's view of the options."""

from __future__ import annotations

import pytest

from megatron_lpc.config import Config, DataConfig, ModelConfig, with_options
from megatron_lpc.model import transformer_config
from megatron_lpc.platform import select_platform

_INTERLEAVED = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}


@pytest.mark.parametrize(
    ("options", "vary"),
    [
        ({}, False),
        ({"pipeline_model_parallel_size": 2}, True),
        ({"pipeline_model_parallel_size": 2, "share_prompt": True}, True),
        ({"pipeline_model_parallel_size": 2, "pack_to": 64}, False),
        (_INTERLEAVED, False),
    ],
)
def test_stages_tell_each_other_shapes_only_where_they_vary(options: dict[str, object], vary: bool) -> None:
    model = ModelConfig(num_layers=4, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, vocab_size=101)
    data = DataConfig(train_data=["unused.jsonl"], tokenizer_model="unused.model")
    config = with_options(Config(model=model, data=data), **options)
    assert transformer_config(config, select_platform("cpu")).variable_seq_lengths is vary
