"""Named quantities in one matrix: what is packed is unpacked under the same name, to the bit."""

import pytest
import torch

from megatron_lpc.evaluation.pair_fields import PairFields

FIELDS = PairFields({"example_index": (), "reference_logps": (2,), "logps": (3, 2), "logits": (4,), "nothing": (0,)})


def _values(pairs=5):
    generator = torch.Generator().manual_seed(0)
    return {
        "example_index": torch.arange(pairs) + 2**40 + 1,
        "reference_logps": torch.full((pairs, 2), torch.nan),
        "logps": torch.randn(pairs, 3, 2, generator=generator),
        "logits": torch.randn(pairs, 4, generator=generator),
        "nothing": torch.empty(pairs, 0),
    }


@pytest.mark.parametrize("pairs", [5, 1, 0])
def test_unpacking_gives_back_what_was_packed(pairs):
    values = _values(pairs)
    matrix = FIELDS.pack(values)
    assert matrix.shape == (pairs, sum(FIELDS.widths)) == (pairs, 13)
    assert matrix.dtype == torch.float64
    unpacked = FIELDS.unpack(matrix)
    assert list(unpacked) == list(values)
    for name, value in values.items():
        assert torch.equal(unpacked[name].isnan(), value.isnan()), name
        assert torch.equal(unpacked[name].nan_to_num(), value.double().nan_to_num()), name


def test_the_order_of_the_given_values_does_not_matter():
    values = _values()
    backwards = dict(reversed(values.items()))
    assert torch.equal(FIELDS.pack(values).nan_to_num(), FIELDS.pack(backwards).nan_to_num())


def test_every_field_must_be_given_and_no_other():
    values = _values()
    with pytest.raises(ValueError, match="the fields of a pair are"):
        FIELDS.pack({name: value for name, value in values.items() if name != "logps"})
    with pytest.raises(ValueError, match="the fields of a pair are"):
        FIELDS.pack(values | {"loss": torch.zeros(5)})


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"logits must be \[5, 4\]; it is \[5, 3\]"):
        FIELDS.pack(_values() | {"logits": torch.zeros(5, 3)})


@pytest.mark.parametrize("shape", [(5, 12), (5, 14), (13,)])
def test_a_matrix_of_other_fields_is_refused(shape):
    with pytest.raises(ValueError, match="pairs of 13 columns"):
        FIELDS.unpack(torch.zeros(shape, dtype=torch.float64))
