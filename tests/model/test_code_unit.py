"""Codes are in units of the hidden states of the model that training starts with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_lpc.model.code_unit import set_code_unit
from megatron_lpc.model.head_parts import new_code_unit


class Model(torch.nn.Module):
    """As `set_code_unit` sees a policy: a final norm and an LPC head."""

    def __init__(self, zero_centered: bool) -> None:
        super().__init__()
        weight = torch.tensor([1.0, -2.0, 4.0, 2.0])
        norm = SimpleNamespace(weight=weight - 1 if zero_centered else weight)
        self.config = SimpleNamespace(layernorm_zero_centered_gamma=zero_centered)
        self.decoder = SimpleNamespace(final_layernorm=norm)
        self.latent_head = SimpleNamespace(code_unit=new_code_unit())


@pytest.mark.parametrize("zero_centered", [False, True])
def test_the_unit_is_the_size_of_what_the_final_norm_gives(zero_centered: bool) -> None:
    model = Model(zero_centered)
    set_code_unit(model)
    assert model.latent_head.code_unit.tolist() == [2.5]


def test_a_head_from_a_checkpoint_keeps_its_unit() -> None:
    model = Model(False)
    model.latent_head.code_unit.fill_(7.0)
    set_code_unit(model)
    assert model.latent_head.code_unit.tolist() == [7.0]
