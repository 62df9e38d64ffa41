import threading
from itertools import islice

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


def test_training_batches_hold_the_stream(loader):
    steps = list(islice(loader().training(seed=3), 4))
    assert [batch.sample_ids.tolist() for step in steps for batch in step] == [[i, i + 1] for i in range(0, 32, 2)]
    order = TrainingOrder(10, seed=3)
    assert [row for step in steps for batch in step for row in batch.example_index.tolist()] == [
        order.example_index(i) for i in range(32)
    ]
    dataset = loader().dataset
    for batch in steps[0]:
        for place, row in enumerate(batch.example_index.tolist()):
            pair = dataset[row]
            assert batch.tokens[place, : len(pair.prompt)].tolist() == list(pair.prompt)
            assert batch.response_length[place] == len(pair.chosen)


def test_resume_is_exact(loader):
    straight = list(islice(loader().training(seed=3), 5))
    resumed = list(islice(loader().training(seed=3, consumed_samples=16), 3))
    assert all(
        equal(a, b) for one, two in zip(straight[2:], resumed, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_data_parallel_ranks_share_the_micro_batches(loader):
    alone = next(loader().training(seed=3))
    ranks = [next(loader(dp_rank=rank, dp_size=2).training(seed=3)) for rank in range(2)]
    assert all(equal(alone[m], ranks[m % 2][m // 2]) for m in range(4))


def test_rows_are_padded_to_a_multiple(loader):
    assert {batch.tokens.shape[1] % 7 for batch in next(loader(pad_to_multiple=7).training(seed=3))} == {0}


def test_evaluation_is_in_order_with_the_number_that_counts(loader):
    steps = list(loader(dp_rank=1, dp_size=2).evaluation())
    assert [
        [(batch.example_index.tolist(), batch.sample_ids.tolist(), valid) for batch, valid in step] for step in steps
    ] == [
        [([2, 3], [2, 3], 2), ([6, 7], [6, 7], 2)],
        [([0, 1], [0, 1], 0)],
    ]
    assert len(list(loader().evaluation(max_steps=1))) == 1
    assert len(list(loader(micro_batch_multiple=2).evaluation())[-1]) == 2


def test_micro_batches_of_the_interleaved_schedule_have_one_width(loader, rows):
    free, aligned = (
        next(
            loader(
                micro_batch_multiple=multiple, rows=[row | {"chosen": "sat " * i} for i, row in enumerate(rows, 1)]
            ).training(seed=3)
        )
        for multiple in (1, 2)
    )
    assert len({batch.tokens.shape for batch in free}) > 1
    assert len({batch.tokens.shape for batch in aligned}) == 1


def packed(loader, **options):
    share = options.pop("share_prompt", False)
    longest = int(pair_tokens(loader().dataset.lengths, share).max())
    return loader(pack_to=2 * longest, share_prompt=share, attention_cost=0.01, **options)


@pytest.mark.parametrize("share_prompt", [False, True])
def test_packed_steps_hold_the_same_pairs(loader, share_prompt):
    make = packed(loader, share_prompt=share_prompt)
    for plain, step in zip(islice(loader().training(seed=3), 3), make.training(seed=3), strict=False):
        pairs = {
            (s, r)
            for batch in step
            for s, r in zip(batch.sample_ids.tolist(), batch.example_index.tolist(), strict=True)
        }
        assert pairs == {
            (s, r)
            for batch in plain
            for s, r in zip(batch.sample_ids.tolist(), batch.example_index.tolist(), strict=True)
        }
        assert {batch.tokens.shape for batch in step} == {(1, make.planner.pack_to)}
        assert len(step) < 8


def test_packed_ranks_share_the_pairs_whatever_their_number(loader):
    for dp_size in (1, 2, 4):
        ranks = [next(packed(loader, dp_rank=rank, dp_size=dp_size).training(seed=3)) for rank in range(dp_size)]
        assert len({len(step) for step in ranks}) == 1
        assert sorted(i for step in ranks for batch in step for i in batch.sample_ids.tolist()) == list(range(8))


def test_packed_evaluation_counts_every_pair_once(loader):
    for dp_size, multiple in ((1, 1), (2, 1), (2, 2)):
        ranks = [
            list(packed(loader, dp_rank=rank, dp_size=dp_size, micro_batch_multiple=multiple).evaluation())
            for rank in range(dp_size)
        ]
        assert all(
            len({len(rank[step]) for rank in ranks}) == 1 and len(ranks[0][step]) % multiple == 0 for step in range(2)
        )
        counted = [
            row
            for rank in ranks
            for step in rank
            for batch, valid in step
            for row in batch.example_index[:valid].tolist()
        ]
        assert sorted(counted) == list(range(10))


def test_packed_resume_is_exact(loader):
    straight = list(islice(packed(loader).training(seed=3), 4))
    resumed = list(islice(packed(loader).training(seed=3, consumed_samples=16), 2))
    assert all(
        equal(a, b) for one, two in zip(straight[2:], resumed, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_costs_are_those_of_the_rows(loader):
    dataset = loader().dataset
    for row, (prompt, chosen, rejected) in enumerate(dataset.lengths.tolist()):
        assert (prompt, chosen, rejected) == tuple(
            map(len, (dataset[row].prompt, dataset[row].chosen, dataset[row].rejected))
        )
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
