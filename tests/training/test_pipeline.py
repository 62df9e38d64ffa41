"""What a pass leaves behind."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megatron_lpc.training import pipeline


def test_a_pass_that_raises_leaves_dropout_on(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = nn.Sequential(nn.Dropout(0.5))

    def broken(**_: object) -> None:
        assert not chunk[0].training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipeline, "get_forward_backward_func", lambda: broken)
    batch = SimpleNamespace(tokens=torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline.score_pass([chunk], [batch], None)
    assert chunk[0].training
