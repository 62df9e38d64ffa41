"""The operators declare what they do: types, aliases, what they write to, shapes of their results, gradients."""

import pytest
import torch
from lpc_kernels.runs import by_response
from lpc_kernels.token_logps_op import token_logps_backward_op, token_logps_op
from torch.library import opcheck

from .pair_logps_cases import draw

HEAD = (0, 21, None, 2.0, 1.0)


def arguments(schedule, buffer=None):
    inputs = draw(20, 21, 8, 3, 2, 0, torch.float32)
    inputs["lm_head_weight"].requires_grad_(schedule == "recompute")
    inputs["hidden"].requires_grad_(schedule != "none")
    inputs["z"].requires_grad_(schedule != "none")
    runs = by_response(inputs["segment_ids"], 6, 3)
    return (
        *(inputs[name] for name in ("hidden", "lm_head_weight", "z", "targets")),
        runs.edges,
        runs.pairs,
        buffer,
        *HEAD,
        9,
    )


@pytest.mark.parametrize("schedule", ["recompute", "frozen", "none"])
@pytest.mark.parametrize("entropy", [False, True])
def test_forward(schedule, entropy):
    opcheck(token_logps_op, (*arguments(schedule), entropy, schedule))


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False], [False, False, True]])
@pytest.mark.parametrize("buffered", [False, True])
def test_backward(wanted, buffered):
    _, stats, _ = token_logps_op(*arguments("none"), False, "recompute")
    opcheck(
        token_logps_backward_op,
        (*arguments("none", torch.zeros(21, 8) if buffered else None), stats, torch.randn(2, 20), wanted),
    )
