import threading
from itertools import chain, islice

import numpy as np
import pytest
import torch

from megatron_lpc.data.batch import PackingLayout, PairBatch
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.costs import pair_tokens, query_key_pairs
from megatron_lpc.data.loader import PairLoader
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.prefetch import prefetch
from megatron_lpc.data.sampler import TrainingOrder
from megatron_lpc.data.tokenizer import load_tokenizer


@pytest.fixture
def loader(config, tmp_path, write_jsonl, rows):
    tokenizer = load_tokenizer(config())

    def make(rows=rows, **options):
        dataset = build_dataset(config(), tokenizer, [write_jsonl(tmp_path / "pairs.jsonl", rows)], "train")
        ranks = {name: options.pop(name) for name in ("dp_rank", "dp_size") if name in options}
        planner = MicroBatchPlanner(pad_id=tokenizer.pad_id, micro_batch_size=2, **options)
        return PairLoader(dataset=dataset, planner=planner, global_batch_size=8, **ranks)

    return make


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return one.equal(two)
    if isinstance(one, PairBatch | PackingLayout):
        return all(equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    return one is two


def assert_equal_steps(one, two):
    for step, other in zip(one, two, strict=True):
        assert len(step) == len(other)
        assert all(equal(a, b) for a, b in zip(step, other, strict=True))


def sample_ids(step):
    return [sample_id for batch in step for sample_id in batch.sample_ids.tolist()]


def example_indices(step):
    return [example for batch in step for example in batch.example_index.tolist()]


def test_training_batches_follow_the_training_order(loader):
    steps = list(islice(loader().training(seed=3), 4))
    assert [batch.sample_ids.tolist() for step in steps for batch in step] == [[i, i + 1] for i in range(0, 32, 2)]
    order = TrainingOrder(10, seed=3)
    examples = [example for step in steps for example in example_indices(step)]
    assert examples == order.example_indices(range(32)).tolist()


def test_training_batches_hold_the_tokens_of_their_pairs(loader):
    dataset = loader().dataset
    for batch in next(loader().training(seed=3)):
        for sequence, example_index in enumerate(batch.example_index.tolist()):
            pair = dataset[example_index]
            assert batch.tokens[sequence, : len(pair.prompt)].tolist() == list(pair.prompt)
            assert batch.response_length[sequence] == len(pair.chosen)


def test_resume_is_exact(loader):
    straight = list(islice(loader().training(seed=3), 5))
    resumed = list(islice(loader().training(seed=3, consumed_samples=16), 3))
    assert_equal_steps(straight[2:], resumed)


def test_data_parallel_ranks_share_the_micro_batches(loader):
    single = next(loader().training(seed=3))
    ranks = [next(loader(dp_rank=rank, dp_size=2).training(seed=3)) for rank in range(2)]
    assert all(equal(single[m], ranks[m % 2][m // 2]) for m in range(4))


def test_sequences_are_padded_to_a_multiple(loader):
    assert {batch.tokens.shape[1] % 7 for batch in next(loader(pad_to_multiple=7).training(seed=3))} == {0}


def test_evaluation_is_in_order_with_the_number_that_counts(loader):
    steps = [
        [(batch.example_index.tolist(), batch.sample_ids.tolist(), num_counted) for batch, num_counted in step]
        for step in loader(dp_rank=1, dp_size=2).evaluation()
    ]
    assert steps == [
        [([2, 3], [2, 3], 2), ([6, 7], [6, 7], 2)],
        [([0, 1], [0, 1], 0)],
    ]
    assert len(list(loader().evaluation(max_steps=1))) == 1
    assert len(list(loader(micro_batch_multiple=2).evaluation())[-1]) == 2


def test_micro_batches_of_the_interleaved_schedule_have_one_sequence_length(loader, rows):
    uneven = [row | {"chosen": "sat " * i} for i, row in enumerate(rows, 1)]
    free = next(loader(micro_batch_multiple=1, rows=uneven).training(seed=3))
    aligned = next(loader(micro_batch_multiple=2, rows=uneven).training(seed=3))
    assert len({batch.tokens.shape for batch in free}) > 1
    assert len({batch.tokens.shape for batch in aligned}) == 1


def packed(loader, share_prompt=False, **options):
    longest = int(pair_tokens(loader().dataset.lengths, share_prompt).max())
    return loader(pack_to=2 * longest, share_prompt=share_prompt, attention_cost=0.01, **options)


@pytest.mark.parametrize("share_prompt", [False, True])
def test_packed_steps_hold_the_same_pairs(loader, share_prompt):
    packed_loader = packed(loader, share_prompt=share_prompt)
    for plain, step in zip(islice(loader().training(seed=3), 3), packed_loader.training(seed=3), strict=False):
        numbers = set(zip(sample_ids(step), example_indices(step), strict=True))
        assert numbers == set(zip(sample_ids(plain), example_indices(plain), strict=True))
        assert {batch.tokens.shape for batch in step} == {(1, packed_loader.planner.pack_to)}
        assert len(step) < 8


def test_packed_ranks_share_the_pairs_whatever_their_number(loader):
    for dp_size in (1, 2, 4):
        ranks = [next(packed(loader, dp_rank=rank, dp_size=dp_size).training(seed=3)) for rank in range(dp_size)]
        assert len({len(step) for step in ranks}) == 1
        assert sorted(sample_id for step in ranks for sample_id in sample_ids(step)) == list(range(8))


@pytest.mark.parametrize(("dp_size", "multiple"), [(1, 1), (2, 1), (2, 2)])
def test_packed_evaluation_counts_every_pair_once(loader, dp_size, multiple):
    ranks = []
    for rank in range(dp_size):
        rank_loader = packed(loader, dp_rank=rank, dp_size=dp_size, micro_batch_multiple=multiple)
        ranks.append(list(rank_loader.evaluation()))
    for step in range(2):
        assert len({len(steps[step]) for steps in ranks}) == 1
        assert len(ranks[0][step]) % multiple == 0
    counted = []
    for steps in ranks:
        for batch, num_counted in chain.from_iterable(steps):
            counted.extend(batch.example_index[:num_counted].tolist())
    assert sorted(counted) == list(range(10))


def test_packed_resume_is_exact(loader):
    straight = list(islice(packed(loader).training(seed=3), 4))
    resumed = list(islice(packed(loader).training(seed=3, consumed_samples=16), 2))
    assert_equal_steps(straight[2:], resumed)


def test_lengths_are_those_of_the_pairs(loader):
    dataset = loader().dataset
    for example_index, lengths in enumerate(dataset.lengths.tolist()):
        assert tuple(lengths) == dataset[example_index].lengths


def test_costs_are_those_of_the_sequences():
    lengths = np.array([[2, 3, 1]])
    assert (pair_tokens(lengths, False).tolist(), pair_tokens(lengths, True).tolist()) == ([8], [6])
    assert query_key_pairs(lengths, False).tolist() == [(1 + 2 + 3 + 4 + 5) + (1 + 2 + 3)]
    assert query_key_pairs(lengths, True).tolist() == [(1 + 2 + 3 + 4 + 5) + 3]


def test_prefetch_works_ahead_in_one_thread():
    made, threads, ready = [], set(), threading.Event()

    def items():
        for i in range(9):
            made.append(i)
            threads.add(threading.get_ident())
            if i == 2:
                ready.set()
            yield i

    stream = prefetch(items(), depth=2)
    assert next(stream) == 0
    assert ready.wait(timeout=10)  # made, though not asked for
    assert list(stream) == list(range(1, 9))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_prefetch_raises_what_the_source_raises_and_ends_its_thread():
    def items():
        yield 1
        raise KeyError("broken")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken"):
        next(stream)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
