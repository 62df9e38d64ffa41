import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair

ids = st.lists(st.integers(1, 90), min_size=1, max_size=9)
pairs = st.lists(st.builds(EncodedPair, ids, ids, ids), min_size=1, max_size=5)


def batch_of(encoded, multiple=1):
    numbers = range(len(encoded))
    return collate(encoded, [10 + i for i in numbers], [20 + i for i in numbers], pad_id=0, pad_to_multiple=multiple)


def test_the_example_of_the_docstring():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])])
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert (batch.loss_index.tolist(), batch.loss_target.tolist(), batch.loss_segment.tolist()) == ([1, 2, 5], [7, 8, 9], [0, 0, 1])
    assert (batch.prompt_end.tolist(), batch.response_end.tolist(), batch.response_length.tolist()) == ([1], [3, 6], [2, 1])
    assert (batch.sample_ids.tolist(), batch.row_ids.tolist(), batch.num_pairs) == ([10], [20], 1)
    assert batch.attention_mask is batch.reference_logps is batch.mixture is None


@given(pairs, st.integers(1, 8))
def test_the_indices_point_at_what_they_say(encoded, multiple):
    batch = batch_of(encoded, multiple)
    flat = batch.tokens.flatten()
    responses = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
    whole = [[*pair.prompt, *response] for pair, response in zip(encoded * 2, responses, strict=True)]
    width = batch.tokens.shape[1]
    assert width % multiple == 0
    assert 0 <= width - max(map(len, whole)) < multiple
    assert batch.tokens.tolist() == [row + [0] * (width - len(row)) for row in whole]
    assert batch.loss_target.tolist() == [token for response in responses for token in response]
    assert flat[batch.loss_index + 1].equal(batch.loss_target)
    assert batch.loss_segment.tolist() == [segment for segment, response in enumerate(responses) for _ in response]
    assert batch.loss_segment.bincount().equal(batch.response_length)
    assert (batch.loss_index // width).equal(batch.loss_segment)
    assert flat[batch.prompt_end].tolist() == [pair.prompt[-1] for pair in encoded]
    assert flat[batch.response_end].tolist() == [response[-1] for response in responses]
    # The first position that carries loss is the last of the prompt; the last of the response carries none.
    starts = torch.tensor([batch.loss_index[batch.loss_segment == segment].min() for segment in range(len(responses))])
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
    with pytest.raises(ValueError, match="1 pairs come with 2 sample ids and 1 row ids"):
        collate([EncodedPair([1], [1], [2])], [1, 2], [1], pad_id=0)
