"""The operators declare what they do: types, aliases, what they write to, shapes of their results, gradients."""

import pytest
import torch
from lpc_kernels.pair_logps.frozen import frozen_op
from lpc_kernels.pair_logps.recompute import recompute_backward_op, recompute_op
from lpc_kernels.pair_logps.scoring import scoring_op
from lpc_kernels.pair_logps.segments import segments_in_response_order
from torch.library import opcheck

from .pair_logps_cases import draw

SCALING = [2.0, 1.0]
NO_GROUP = None


def sizes(entropy):
    return [0, 21, 9, int(entropy), 0]


def arguments(trains_lm_head=False, wants_gradient=True):
    """hidden, lm_head_weight, z and the index tensors."""
    inputs = draw(20, 21, 8, 3, 2, 0, torch.float32)
    inputs["lm_head_weight"].requires_grad_(trains_lm_head)
    inputs["hidden"].requires_grad_(wants_gradient)
    inputs["z"].requires_grad_(wants_gradient)
    segments = segments_in_response_order(inputs["segment_ids"], 6, 3)
    index = [inputs["targets"], segments.cu_seqlens, segments.pair_of_segment]
    return inputs["hidden"], inputs["lm_head_weight"], inputs["z"], index


@pytest.mark.parametrize("entropy", [False, True])
def test_recompute(entropy):
    opcheck(recompute_op, (*arguments(trains_lm_head=True), sizes(entropy), SCALING, NO_GROUP, None))


@pytest.mark.parametrize("entropy", [False, True])
def test_frozen(entropy):
    opcheck(frozen_op, (*arguments(), sizes(entropy), SCALING, NO_GROUP))


@pytest.mark.parametrize("entropy", [False, True])
def test_scoring(entropy):
    opcheck(scoring_op, (*arguments(wants_gradient=False), sizes(entropy), SCALING, NO_GROUP))


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False], [False, False, True]])
@pytest.mark.parametrize("buffered", [False, True])
def test_recompute_backward(wanted, buffered):
    hidden, lm_head_weight, z, index = arguments(wants_gradient=False)
    _, stats = recompute_op(hidden, lm_head_weight, z, index, sizes(False), SCALING, NO_GROUP, None)
    saved = [hidden, lm_head_weight, *index, stats, torch.randn(2, 20)]
    main_grad = torch.zeros(21, 8) if buffered else None
    opcheck(recompute_backward_op, (saved, z, main_grad, wanted, sizes(False), SCALING, NO_GROUP))
