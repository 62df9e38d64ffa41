import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair

ids = st.lists(st.integers(1, 90), min_size=1, max_size=9)
pairs = st.lists(st.builds(EncodedPair, ids, ids, ids), min_size=1, max_size=5)


def batch_of(encoded, multiple=1, **rows):
    numbers = range(len(encoded))
    return collate(
        encoded, [10 + i for i in numbers], [20 + i for i in numbers], pad_id=0, pad_to_multiple=multiple, **rows
    )


def test_the_example_of_the_docstring():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])])
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert (batch.loss_index.tolist(), batch.targets.tolist(), batch.segment_ids.tolist()) == (
        [1, 2, 5],
        [7, 8, 9],
        [0, 0, 1],
    )
    assert (batch.prompt_end.tolist(), batch.response_end.tolist(), batch.response_length.tolist()) == (
        [1],
        [3, 6],
        [2, 1],
    )
    assert (batch.sample_ids.tolist(), batch.example_index.tolist(), batch.num_pairs) == ([10], [20], 1)
    assert batch.packing_layout is batch.reference_logps is batch.mixture is None


def test_the_example_with_a_shared_prompt():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])], share_prompt=True)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.packing_layout.stacked.tolist() == [[[0, 0, 1, 1, 2]], [[0, 1, 2, 3, 2]]]
    assert (batch.loss_index.tolist(), batch.targets.tolist(), batch.segment_ids.tolist()) == (
        [1, 2, 1],
        [7, 8, 9],
        [0, 0, 1],
    )
    assert (batch.prompt_end.tolist(), batch.response_end.tolist(), batch.response_length.tolist()) == (
        [1],
        [3, 4],
        [2, 1],
    )


def test_the_packed_example():
    batch = batch_of([EncodedPair([5, 6], [7, 8], [9])], pack_to=8)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 5, 6, 9, 0]]
    assert batch.packing_layout.stacked.tolist() == [[[1, 1, 1, 1, 2, 2, 2, -3]], [[0, 1, 2, 3, 0, 1, 2, 0]]]
    assert (batch.loss_index.tolist(), batch.targets.tolist(), batch.segment_ids.tolist()) == (
        [1, 2, 5],
        [7, 8, 9],
        [0, 0, 1],
    )
    assert (batch.prompt_end.tolist(), batch.response_end.tolist()) == ([1], [3, 6])


@given(pairs, st.integers(1, 8), st.booleans(), st.booleans())
def test_the_indices_of_shared_and_packed_rows(encoded, multiple, share_prompt, packed):
    """Whatever the rows: a token that carries loss follows what its document says, at the position that it has in a row of its own."""
    size = sum(
        len(pair.prompt) * (1 if share_prompt else 2) + len(pair.chosen) + len(pair.rejected) for pair in encoded
    )
    batch = batch_of(encoded, multiple, share_prompt=share_prompt, pack_to=size + 3 if packed else None)
    plain = batch_of(encoded)
    if not share_prompt and not packed:
        return
    (documents, positions), flat = batch.packing_layout.stacked.flatten(1), batch.tokens.flatten()
    assert batch.tokens.shape == ((1, size + 3) if packed else (len(encoded), batch.tokens.shape[1]))
    assert packed or batch.tokens.shape[1] % multiple == 0
    for name in ("targets", "segment_ids", "response_length", "sample_ids", "example_index"):
        assert getattr(batch, name).equal(getattr(plain, name))
    assert flat[batch.loss_index].equal(plain.tokens.flatten()[plain.loss_index])
    assert positions[batch.loss_index].equal(plain.loss_index % plain.tokens.shape[1])
    for end in ("prompt_end", "response_end"):
        assert flat[getattr(batch, end)].equal(plain.tokens.flatten()[getattr(plain, end)])
        assert positions[getattr(batch, end)].equal(getattr(plain, end) % plain.tokens.shape[1])
    count = len(encoded)
    for response, pair in enumerate([*encoded, *encoded]):
        number, part = response % count, 1 + response // count
        own = (documents == 3 * number + part).nonzero()[:, 0]
        whole = [*pair.prompt, *(pair.chosen if part == 1 else pair.rejected)]
        seen = torch.cat([(documents == 3 * number).nonzero()[:, 0], own]) if share_prompt else own
        assert flat[seen].tolist() == whole
        assert positions[seen].tolist() == list(range(len(whole)))
        assert own[-1] == batch.response_end[response]
    assert (documents == -3).sum() == batch.tokens.numel() - size
    wider = batch.padded_to(batch.tokens.shape[1] + 2, pad_id=0)
    for name in ("prompt_end", "response_end", "loss_index"):
        assert wider.tokens.flatten()[getattr(wider, name)].equal(flat[getattr(batch, name)])
        assert wider.packing_layout.stacked.flatten(1)[:, getattr(wider, name)].equal(
            batch.packing_layout.stacked.flatten(1)[:, getattr(batch, name)]
        )


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
    assert batch.targets.tolist() == [token for response in responses for token in response]
    assert flat[batch.loss_index + 1].equal(batch.targets)
    assert batch.segment_ids.tolist() == [segment for segment, response in enumerate(responses) for _ in response]
    assert batch.segment_ids.bincount().equal(batch.response_length)
    assert (batch.loss_index // width).equal(batch.segment_ids)
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
