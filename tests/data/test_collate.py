import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair

ids = st.lists(st.integers(1, 90), min_size=1, max_size=9)
pairs = st.lists(st.builds(EncodedPair, ids, ids, ids), min_size=1, max_size=5)


def batch_of(encoded, multiple=1, **arrangement):
    """One micro-batch; sample ids count from 10, example indices from 20."""
    sample_ids = range(10, 10 + len(encoded))
    example_index = range(20, 20 + len(encoded))
    return collate(encoded, sample_ids, example_index, pad_id=0, pad_to_multiple=multiple, **arrangement)


def assert_indices(batch, **expected):
    for name, values in expected.items():
        assert getattr(batch, name).tolist() == values, name


def test_the_example_of_the_docstring():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])])
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert_indices(batch, loss_index=[1, 2, 5], targets=[7, 8, 9], segment_ids=[0, 0, 1])
    assert_indices(batch, prompt_end=[1], response_end=[3, 6], response_length=[2, 1])
    assert_indices(batch, sample_ids=[10], example_index=[20])
    assert batch.num_pairs == 1
    assert batch.packing_layout is batch.reference_logps is batch.mixture is None


def test_the_example_with_a_shared_prompt():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])], share_prompt=True)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.packing_layout.document_ids.tolist() == [[0, 0, 1, 1, 2]]
    assert batch.packing_layout.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.packing_layout.cu_seqlens is batch.packing_layout.max_seqlen is None
    assert_indices(batch, loss_index=[1, 2, 1], targets=[7, 8, 9], segment_ids=[0, 0, 1])
    assert_indices(batch, prompt_end=[1], response_end=[3, 4], response_length=[2, 1])


def test_the_packed_example():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])], pack_to=8)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 5, 6, 9, 0]]
    assert batch.packing_layout.document_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, -3]]
    assert batch.packing_layout.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.packing_layout.cu_seqlens.tolist() == [0, 4, 7, 8], "padding is a document"
    assert batch.packing_layout.max_seqlen == 4
    longer = batch.padded_to(14, pad_id=0).packing_layout
    assert (longer.cu_seqlens.tolist(), longer.max_seqlen) == ([0, 4, 7, 14], 7)
    moved = longer.map_tensors(lambda tensor: tensor.to("cpu"))
    assert (moved.cu_seqlens.tolist(), moved.max_seqlen) == ([0, 4, 7, 14], 7)
    assert_indices(batch, loss_index=[1, 2, 5], targets=[7, 8, 9], segment_ids=[0, 0, 1])
    assert_indices(batch, prompt_end=[1], response_end=[3, 6])


arrangements = st.sampled_from([(True, False), (False, True), (True, True)])
"""Whether the prompt is shared, whether pairs are packed."""


def tokens_of(encoded, share_prompt):
    prompts = 1 if share_prompt else 2
    return sum(prompts * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in encoded)


def arranged(encoded, multiple, arrangement):
    share_prompt, packed = arrangement
    pack_to = tokens_of(encoded, share_prompt) + 3 if packed else None
    return batch_of(encoded, multiple, share_prompt=share_prompt, pack_to=pack_to)


@given(pairs, st.integers(1, 8), arrangements)
def test_the_shapes_of_shared_and_packed_sequences(encoded, multiple, arrangement):
    batch = arranged(encoded, multiple, arrangement)
    num_sequences, seq_len = batch.tokens.shape
    share_prompt, packed = arrangement
    size = tokens_of(encoded, share_prompt)
    if packed:
        assert (num_sequences, seq_len) == (1, size + 3)
    else:
        assert num_sequences == len(encoded)
        assert seq_len % multiple == 0
    assert (batch.packing_layout.document_ids == -3).sum() == batch.tokens.numel() - size


@given(pairs, st.integers(1, 8), arrangements)
def test_an_index_finds_the_same_token_and_position_in_every_arrangement(encoded, multiple, arrangement):
    batch = arranged(encoded, multiple, arrangement)
    plain = batch_of(encoded)
    tokens = batch.tokens.flatten()
    positions = batch.packing_layout.position_ids.flatten()
    for name in ("targets", "segment_ids", "response_length", "sample_ids", "example_index"):
        assert getattr(batch, name).equal(getattr(plain, name))
    for name in ("loss_index", "prompt_end", "response_end"):
        index, plain_index = getattr(batch, name), getattr(plain, name)
        assert tokens[index].equal(plain.tokens.flatten()[plain_index])
        assert positions[index].equal(plain_index % plain.tokens.shape[1])


@given(pairs, st.integers(1, 8), arrangements)
def test_the_document_of_a_response_holds_what_it_may_see(encoded, multiple, arrangement):
    """Its prompt and itself, at the positions that they have in a sequence of their own."""
    batch = arranged(encoded, multiple, arrangement)
    share_prompt, _ = arrangement
    tokens = batch.tokens.flatten()
    document_ids, position_ids = batch.packing_layout.stacked.flatten(1)
    for response, pair in enumerate([*encoded, *encoded]):
        is_chosen = response < len(encoded)
        number = response % len(encoded)
        own = (document_ids == 3 * number + (1 if is_chosen else 2)).nonzero()[:, 0]
        shared = (document_ids == 3 * number).nonzero()[:, 0]
        seen = torch.cat([shared, own]) if share_prompt else own
        whole = [*pair.prompt, *(pair.chosen if is_chosen else pair.rejected)]
        assert tokens[seen].tolist() == whole
        assert position_ids[seen].tolist() == list(range(len(whole)))
        assert own[-1] == batch.response_end[response]


@given(pairs, st.integers(1, 8), arrangements)
def test_indices_follow_their_tokens_into_longer_sequences(encoded, multiple, arrangement):
    batch = arranged(encoded, multiple, arrangement)
    longer = batch.padded_to(batch.tokens.shape[1] + 2, pad_id=0)
    for name in ("prompt_end", "response_end", "loss_index"):
        index, moved = getattr(batch, name), getattr(longer, name)
        assert longer.tokens.flatten()[moved].equal(batch.tokens.flatten()[index])
        assert longer.packing_layout.stacked.flatten(1)[:, moved].equal(
            batch.packing_layout.stacked.flatten(1)[:, index]
        )


def test_sequences_are_not_cut():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])])
    with pytest.raises(ValueError, match="sequences of 4 tokens cannot be padded to 3"):
        batch.padded_to(3, pad_id=0)


@given(pairs, st.integers(1, 8))
def test_the_indices_point_at_what_they_say(encoded, multiple):
    batch = batch_of(encoded, multiple)
    flat = batch.tokens.flatten()
    responses = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
    whole = [[*pair.prompt, *response] for pair, response in zip(encoded * 2, responses, strict=True)]
    seq_len = batch.tokens.shape[1]
    assert seq_len % multiple == 0
    assert 0 <= seq_len - max(map(len, whole)) < multiple
    assert batch.tokens.tolist() == [tokens + [0] * (seq_len - len(tokens)) for tokens in whole]
    assert batch.targets.tolist() == [token for response in responses for token in response]
    assert flat[batch.loss_index + 1].equal(batch.targets)
    assert batch.segment_ids.tolist() == [segment for segment, response in enumerate(responses) for _ in response]
    assert batch.segment_ids.bincount().equal(batch.response_length)
    assert (batch.loss_index // seq_len).equal(batch.segment_ids)
    assert flat[batch.prompt_end].tolist() == [pair.prompt[-1] for pair in encoded]
    assert flat[batch.response_end].tolist() == [response[-1] for response in responses]
    # The first position that carries loss is the last of the prompt; the last of the response carries none.
    starts = torch.tensor([batch.loss_index[batch.segment_ids == segment].min() for segment in range(len(responses))])
    assert starts[: len(encoded)].equal(batch.prompt_end)
    assert (starts + batch.response_length).equal(batch.response_end)
    assert all(value.dtype == torch.int64 for value in vars(batch).values() if isinstance(value, torch.Tensor))


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_copied_without_a_warning():
    array = np.array([3, 4], dtype=np.int32)
    array.flags.writeable = False
    batch = batch_of([EncodedPair(array, array, array[:1])])
    batch.tokens[:] = 0
    assert array.tolist() == [3, 4]


def test_errors():
    with pytest.raises(ValueError, match="a pair has an empty prompt or response"):
        batch_of([EncodedPair([1], [], [2])])
    with pytest.raises(ValueError, match="a pair has an empty prompt or response"):
        batch_of([EncodedPair([], [1], [2])])
    with pytest.raises(ValueError, match="1 pairs come with 2 sample ids and 1 example indices"):
        collate([EncodedPair([1], [1], [2])], [1, 2], [1], pad_id=0)
    with pytest.raises(ValueError, match="1 pairs of 5 tokens in all do not fit --pack-to 4"):
        batch_of([EncodedPair([1], [1, 2], [2])], pack_to=4)
