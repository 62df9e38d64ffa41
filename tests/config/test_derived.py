"""Numbers that follow from the options."""

from megatron_lpc.config import data_parallel_size, head_width, num_microbatches, padded_vocab_size


def test_derived_numbers(config_of):
    config = config_of("--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2")
    assert data_parallel_size(config, 8) == 2
    assert num_microbatches(config, 8) == 4
    assert head_width(config.model) == 32
    assert head_width(config_of("--kv-channels 48").model) == 48
    assert [padded_vocab_size(config, v) for v in (1, 128, 129)] == [128, 128, 256]
