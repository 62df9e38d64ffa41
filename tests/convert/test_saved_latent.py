"""Files of latents: what is written is read, and what is no such file or of other codes is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from megatron_lpc.convert.hub.saved_latent import (
    SavedLatent,
    codes_fingerprint,
    read_latent,
    read_latent_of,
    write_latent,
)

CODEBOOK = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
UNIT = torch.tensor([1.7])
LATENT = SavedLatent(
    weights=torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64),
    interval=torch.tensor([[0.0, 0.1, 0.5], [0.2, 0.3, 0.9]], dtype=torch.float64),
    pairs=8,
    posterior="support",
    codes=codes_fingerprint(CODEBOOK, UNIT),
)


@pytest.mark.parametrize("interval", [LATENT.interval, None])
def test_round_trip(tmp_path, interval):
    write_latent(tmp_path / "a.safetensors", replace(LATENT, interval=interval))
    found = read_latent_of(tmp_path / "a.safetensors", CODEBOOK.bfloat16(), UNIT.double())
    assert torch.equal(found.weights, LATENT.weights)
    assert (found.interval is None) == (interval is None)
    assert interval is None or torch.equal(found.interval, interval)
    assert (found.pairs, found.posterior, found.codes) == (8, "support", LATENT.codes)


@pytest.mark.parametrize(
    ("codebook", "unit", "message"),
    [
        (torch.cat([CODEBOOK, CODEBOOK]), UNIT, "has weights of 3 codes, this model 6"),
        (CODEBOOK * 1.01, UNIT, "is of another model"),
        (CODEBOOK, UNIT * 1.01, "is of another model"),
        (CODEBOOK.flip(0), UNIT, "is of another model"),
    ],
)
def test_other_codes(tmp_path, codebook, unit, message):
    path = tmp_path / "a.safetensors"
    write_latent(path, LATENT)
    with pytest.raises(ValueError, match=message) as error:
        read_latent_of(path, codebook, unit)
    assert str(path) in str(error.value)


def test_no_such_file(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read"):
        read_latent(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read"):
        read_latent(path)
    save_file({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="holds no saved latent"):
        read_latent(path)
    write_latent(path, replace(LATENT, weights=LATENT.weights * torch.nan))
    with pytest.raises(ValueError, match="the file is damaged"):
        read_latent(path)
    save_file({"weights": torch.ones(3)}, path, metadata={"latent": '{"kind": "megatron_lpc mixture of codes"}'})
    with pytest.raises(ValueError, match="lacks 'pairs', the file is damaged"):
        read_latent(path)
