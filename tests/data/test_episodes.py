"""Episodes: pairs of one group share a micro-batch, in an order that is a function of the sample's number."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.costs import pair_tokens
from megatron_lpc.data.episodes import EpisodeIndex, EpisodeOrder
from megatron_lpc.data.loader import PairLoader
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.permutation import drawn_below, permuted_each
from megatron_lpc.data.tokenizer import load_tokenizer

ROWS = [
    {"prompt": f"the cat {i // 3}", "chosen": "sat " * (1 + i % 5), "rejected": "ran", "annotator": "abbccc"[i % 6]}
    for i in range(60)
]
"""10, 20 and 30 pairs of a, b and c."""


def index_of(counts, size, prompts_per_group=None):
    """Groups of these sizes, their pairs shuffled."""
    groups = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    rng = np.random.default_rng(sum(counts))
    rng.shuffle(groups)
    prompts = rng.integers(0, prompts_per_group or 2**32, len(groups), dtype=np.uint32)
    return groups, prompts, EpisodeIndex.of(groups, prompts, size)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 20))
def test_an_epoch_deals_each_group_out_to_episodes(counts, size, epoch):
    if max(counts) < size:
        counts = [*counts, size]
    groups, _, index = index_of(counts, size)
    first = epoch * index.pairs_per_epoch
    examples = EpisodeOrder(index, seed=1).example_indices(range(first, first + index.pairs_per_epoch))
    assert len(set(examples.tolist())) == len(examples) == sum(count // size * size for count in counts)
    episodes = groups[examples].reshape(-1, size)
    assert (episodes == episodes[:, :1]).all()
    assert np.bincount(episodes[:, 0], minlength=len(counts)).tolist() == [count // size for count in counts]
    assert index.left_out == sum(counts) - len(examples)
    assert index.too_small.tolist() == [group for group, count in enumerate(counts) if count < size]


def test_what_an_epoch_leaves_out_comes_in_others():
    groups, _, index = index_of([7, 9, 2], 4)
    seen = np.zeros(len(groups), int)
    order = EpisodeOrder(index, seed=3)
    for epoch in range(300):
        seen[order.example_indices(range(12 * epoch, 12 * epoch + 12))] += 1
    assert index.pairs_per_epoch == 12
    for group, share in ((0, 4 / 7), (1, 8 / 9), (2, 0)):
        assert seen[groups == group] / 300 == pytest.approx(share, abs=0.1)


def test_every_two_pairs_of_different_prompts_meet():
    _, prompts, index = index_of([12], 3)
    order = EpisodeOrder(index, seed=3)
    met = np.zeros((12, 12), int)
    for epoch in range(400):
        for episode in order.example_indices(range(12 * epoch, 12 * epoch + 12)).reshape(-1, 3):
            met[np.ix_(episode, episode)] += 1
    assert len(set(prompts.tolist())) == 12
    assert met.diagonal().tolist() == [400] * 12
    assert (met > 0).all()


def test_pairs_of_one_prompt_are_apart():
    """Twenty prompts of three pairs each: dealt out at random, every fifth episode would have one twice."""
    prompts = np.repeat(np.arange(20, dtype=np.uint32), 3)
    index = EpisodeIndex.of(np.zeros(60, np.int32), prompts, 4)
    episodes = prompts[EpisodeOrder(index, seed=1).example_indices(range(6000))].reshape(-1, 4)
    repeated = sum(len(set(episode)) < 4 for episode in episodes.tolist())
    assert repeated < 0.04 * len(episodes)


def test_an_order_depends_on_seed_and_epoch_only():
    _, _, index = index_of([9, 14, 5], 2)
    forwards = EpisodeOrder(index, seed=1).example_indices(range(150)).tolist()
    for step in range(0, 150, 6):
        assert EpisodeOrder(index, seed=1).example_indices(range(step, 150)).tolist() == forwards[step:]
    one_by_one = [EpisodeOrder(index, seed=1).example_indices([sample]).item() for sample in range(150)]
    assert one_by_one == forwards
    other_seed = EpisodeOrder(index, seed=2).example_indices(range(26)).tolist()
    assert len({tuple(order) for order in (forwards[:26], forwards[26:52], forwards[52:78], other_seed)}) == 4


def test_the_order_is_pinned():
    # A change would break the resume of every run with a context.
    index = EpisodeIndex.of(np.array([0, 1, 0, 1, 1, 0, 1], np.int32), np.arange(7, dtype=np.uint32), 2)
    expected = [1, 4, 3, 6, 2, 5, 6, 1, 5, 0, 4, 3]
    assert EpisodeOrder(index, seed=1234).example_indices(range(12)).tolist() == expected


def test_no_group_with_enough_pairs_is_refused():
    with pytest.raises(ValueError, match="no group has the 4 pairs of an episode; the largest has 3"):
        index_of([3, 2], 4)


@given(st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_each_stream_is_a_permutation_of_its_own(sizes):
    positions = np.concatenate([np.arange(size) for size in sizes])
    each = np.repeat(sizes, sizes)
    streams = np.repeat(np.arange(len(sizes)), sizes)
    moved = permuted_each(positions, each, streams, 5)
    for stream, size in enumerate(sizes):
        assert sorted(moved[streams == stream].tolist()) == list(range(size))
    drawn = drawn_below(each, streams, 5)
    assert ((drawn >= 0) & (drawn < each)).all()


def test_streams_of_one_size_differ():
    positions = np.tile(np.arange(30), 2)
    moved = permuted_each(positions, np.full(60, 30), np.repeat([0, 1], 30), 5)
    assert (moved[:30] == moved[30:]).sum() < 10


@pytest.fixture
def dataset(config, tmp_path, write_jsonl):
    options = config(group_column="annotator")
    return build_dataset(options, load_tokenizer(options), [write_jsonl(tmp_path / "pairs.jsonl", ROWS)], "train")


@pytest.fixture
def loader(dataset):
    def make(dp_rank=0, dp_size=1, global_batch_size=12, **options):
        groups, _ = dataset.group_numbers()
        return PairLoader(
            dataset=dataset,
            planner=MicroBatchPlanner(pad_id=0, micro_batch_size=4, **options),
            global_batch_size=global_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
            episodes=EpisodeIndex.of(groups, dataset.prompt_checksums(), 2),
        )

    return make


def test_groups_and_prompts_of_a_data_set(dataset):
    groups, names = dataset.group_numbers()
    assert names == ["a", "b", "c"]
    assert groups.dtype == np.int32
    assert [names[number] for number in groups] == dataset.groups
    checksums = dataset.prompt_checksums()
    prompts = [tuple(dataset[index].prompt) for index in range(len(dataset))]
    assert len(set(checksums.tolist())) == len(set(prompts)) == len(set(zip(prompts, checksums.tolist(), strict=True)))


def test_pairs_without_a_group_are_refused(config, tmp_path, write_jsonl):
    plain = build_dataset(config(), load_tokenizer(config()), [write_jsonl(tmp_path / "p.jsonl", ROWS)], "train")
    with pytest.raises(ValueError, match="60 pairs have no group"):
        plain.group_numbers()


def layouts(dataset):
    for share_prompt in (False, True):
        longest = int(pair_tokens(dataset.lengths, share_prompt).max())
        yield {"share_prompt": share_prompt}
        yield {"share_prompt": share_prompt, "pack_to": 5 * longest}


def episodes_of(steps, dataset):
    """(sample ids, example indices) of each episode of some steps, and a check of their groups."""
    found = []
    for batch in (batch for step in steps for batch in step):
        samples, examples = batch.sample_ids.view(-1, 2), batch.example_index.view(-1, 2)
        for sample, example in zip(samples.tolist(), examples.tolist(), strict=True):
            assert sample[0] % 2 == 0
            assert sample[1] == sample[0] + 1
            assert len({dataset.groups[index] for index in example}) == 1
            found.append((tuple(sample), tuple(example)))
    return sorted(found)


def test_episodes_are_the_same_in_every_layout(loader, dataset):
    expected = episodes_of(islice(loader().training(seed=3), 4), dataset)
    assert [sample for samples, _ in expected for sample in samples] == list(range(48))
    for options in layouts(dataset):
        for dp_size in (1, 3):
            ranks = [list(islice(loader(rank, dp_size, **options).training(seed=3), 4)) for rank in range(dp_size)]
            assert episodes_of([step for steps in ranks for step in steps], dataset) == expected


def test_a_resume_is_exact_at_every_step(loader, dataset):
    for options in layouts(dataset):
        straight = list(islice(loader(**options).training(seed=3), 7))  # More than an epoch.
        for done in range(7):
            resumed = list(islice(loader(**options).training(seed=3, consumed_samples=12 * done), 7 - done))
            for one, other in zip(straight[done:], resumed, strict=True):
                for batch, again in zip(one, other, strict=True):
                    assert batch.tokens.equal(again.tokens)
                    assert batch.sample_ids.equal(again.sample_ids)
                    assert batch.example_index.equal(again.example_index)


def test_evaluation_goes_pair_by_pair(loader):
    counted = [
        example for step in loader().evaluation() for batch, num in step for example in batch.example_index[:num]
    ]
    assert sorted(int(example) for example in counted) == list(range(60))


def test_padded_episodes_of_like_length_share_a_micro_batch():
    drawn = np.array([[2, 1, 1], [2, 6, 6], [2, 2, 2], [2, 3, 2], [2, 8, 1], [2, 1, 1], [2, 4, 2], [2, 2, 2]])
    planner = MicroBatchPlanner(pad_id=0, micro_batch_size=4)
    assert planner.plan(drawn, episode_size=2) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_an_episode_that_might_not_fit_is_refused(loader, dataset):
    longest = int(pair_tokens(dataset.lengths, False).max())
    planner = loader(pack_to=2 * longest - 1).planner
    planner.check_fit(dataset.lengths)
    message = f"--pack-to {2 * longest - 1}: an episode of 2 pairs of one group can have {2 * longest} tokens; raise"
    with pytest.raises(ValueError, match=message):
        planner.check_episodes_fit(dataset.lengths, loader().episodes)
    loader(pack_to=2 * longest).planner.check_episodes_fit(dataset.lengths, loader().episodes)
