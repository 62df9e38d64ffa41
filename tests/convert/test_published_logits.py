"""Every published config.json: imported, with the logits of transformers, and exported with its fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import prompts
from published_settings import PUBLISHED, narrowed
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.logits import hf_logits, megatron_logits


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str, tmp_path: Path) -> None:
    settings = narrowed(name)
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**narrowed(name))).float()
    for parameter in model.parameters():
        # Norms away from 1 and biases from 0, or swapped ones go unnoticed.
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    ours = megatron_logits(tmp_path / "megatron", describe_megatron(tmp_path / "megatron").model, prompts())
    for one, other in zip(ours, hf_logits(tmp_path / "hf", prompts()), strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))
    export_hf(tmp_path / "megatron", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    types = ("dtype", "torch_dtype")
    assert {key: value for key, value in back.items() if key not in types} == {
        key: value for key, value in settings.items() if key not in types
    }
