import pytest
from planned_runs import TINY, planned, split

from megatron_lpc.config import with_options
from megatron_lpc.plan.micro_batch import PairLengths, longest_lengths, micro_batch, micro_batches_per_step


def config(**options):
    return planned(4, TINY, **{"max_length": 300, "max_prompt_length": 100, "global_batch_size": 64} | options)


def test_padded_pairs_are_two_sequences():
    run = config(micro_batch_size=2)
    batch = micro_batch(run, longest_lengths(run), "cuda")
    assert batch.lengths == PairLengths(100, 200)
    assert (batch.pairs, batch.sequences, batch.seq_len) == (2, 4, 384), "a multiple of 128 on a GPU"
    assert micro_batch(run, longest_lengths(run), "cpu").seq_len == 300
    assert batch.tokens == 4 * 384
    assert batch.loss_tokens == 2 * 2 * 200
    assert batch.demanded == (4 * 300, 800, 4 * 300 * 301 // 2, 2)
    assert batch.computed == (4 * 384, 800, 4 * 384 * 385 // 2, 2)
    assert micro_batches_per_step(run, batch, 4) == 64 // (2 * 4)


def test_sequences_are_split_over_ranks():
    run = config(pad_to_multiple_of=7, micro_batch_size=1, **split(2, 1))
    assert micro_batch(run, longest_lengths(run), "cuda").seq_len == 308  # 22 x 2 x 7.


def test_a_shared_prompt_is_computed_once():
    run = config(share_prompt=True, micro_batch_size=2)
    batch = micro_batch(run, longest_lengths(run), "cpu")
    assert (batch.sequences, batch.seq_len) == (2, 500)
    attended = 2 * 300 * 301 // 2 - 100 * 101 // 2
    assert batch.demanded == batch.computed == (2 * 500, 800, 2 * attended, 2)


def test_packed_pairs():
    run = config(pack_to=2048, micro_batch_size=4)
    batch = micro_batch(run, PairLengths(100, 200), "cuda")
    assert (batch.pairs, batch.sequences, batch.seq_len) == (3, 1, 2048)
    assert batch.computed == (2048, 1200, 6 * 300 * 301 // 2, 3)
    # 16 pairs of a rank, 3 at a time; interleaved stages take micro-batches in multiples of their number.
    assert micro_batches_per_step(run, batch, 4) == 6
    interleaved = with_options(run, pipeline_model_parallel_size=4, num_virtual_stages_per_pipeline_rank=2)
    assert micro_batches_per_step(interleaved, batch, 4) == 24  # Of 64 pairs: 22, rounded up to a multiple of 4.


def test_windows_bound_what_is_attended():
    run = config(sliding_window=10, micro_batch_size=1)
    batch = micro_batch(run, PairLengths(10, 10), "cpu")
    of_sequence = 10 * 11 // 2 + 10 * 10
    assert batch.demanded[2] == batch.computed[2] == 2 * of_sequence


@pytest.mark.parametrize(("prompt", "expected"), [(None, PairLengths(150, 150)), (60, PairLengths(60, 240))])
def test_the_longest_pair(prompt, expected):
    assert longest_lengths(config(max_prompt_length=prompt)) == expected
