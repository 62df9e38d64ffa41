"""An export for servers: the backbone and a table of logits are the model with its head, under every kind of latent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_export import LATENTS, PROMPT
from transformers import AutoModelForCausalLM

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.latent_table import LatentTable, table_of_environment
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM

GEMMA2 = (
    "--final-logit-softcapping 3 --attn-logit-softcapping 2 --apply-layernorm-1p --activation geglu --scale-embeddings "
    "--norm-position both --query-pre-attn-scalar 10 --sliding-window 5 --window-attn-skip-freq 2"
)


@pytest.fixture
def table(for_servers: Path) -> LatentTable:
    return LatentTable(for_servers / "served")


@torch.no_grad()
@pytest.mark.parametrize("kind", LATENTS)
def test_backbone_and_table_are_the_model_with_its_head(for_servers: Path, table: LatentTable, kind: str) -> None:
    asked, told = LATENTS[kind]
    tokens = torch.tensor([PROMPT])
    output = AutoModelForCausalLM.from_pretrained(for_servers / "served")(tokens, output_hidden_states=True)
    latent = table.latent_of({"lpc_latent": asked})
    weights = table.inferred([latent], output.hidden_states[-1][:, -1]) if isinstance(latent, str) else latent
    plain = output.logits[:, -1]
    expected = LPCForCausalLM.from_pretrained(for_servers / "hf")(tokens, latent=told).logits[:, -1]
    added = 0 if weights is None else weights @ table.values
    torch.testing.assert_close(plain + added, expected, rtol=0, atol=1e-5)
    assert ((plain - expected).abs().max() > 0.01) == (kind != "none"), "the latent does something"


def test_without_a_latent(table: LatentTable) -> None:
    assert table.latent_of(None) is None
    assert table.latent_of({"other": 1}) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([0.5, 0.5], "must be 4 weights, one per code, got 2"),
        ([0.5, 0.5, 0.5, 0.5], "must add up to 1, got 2"),
        ([-1.0, 1.0, 0.5, 0.5], "finite numbers of at least 0"),
        ([float("nan"), 1.0, 0.0, 0.0], "finite numbers of at least 0"),
        (["1", 0, 0, 0], "finite numbers of at least 0"),
        ([True, 0, 0, 0], "finite numbers of at least 0"),
        (4, "must be a code from 0 to 3, got 4"),
        (-1, "must be a code from 0 to 3, got -1"),
        (True, "must be weights, a code or a name, got bool"),
        ({"a": 1}, "must be weights, a code or a name, got dict"),
        ("nobody", "no code and no saved latent of the name 'nobody'"),
        ("../latents/ann", "no code and no saved latent"),
        ("", "no code and no saved latent"),
        ("sample", "no code and no saved latent of the name 'sample'"),
        ("x" * 5000, "no code and no saved latent"),
        ("other", "is of another model"),
    ],
)
def test_malformed_latents_are_refused(table: LatentTable, asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match="lpc_latent") as error:
        table.latent_of({"lpc_latent": asked})
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_names_of_codes_that_mean_a_latent(for_servers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="a code has the name argmax"):
        export_hf(for_servers / "run", tmp_path / "out", code_names=["a", "b", "argmax", "c"], form="serving")
    assert not (tmp_path / "out").exists()


def test_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"lpc_latent\.safetensors: is missing"):
        LatentTable(tmp_path)
    table_of_environment.cache_clear()
    monkeypatch.delenv("LPC_EXPORT", raising=False)
    with pytest.raises(ValueError, match="LPC_EXPORT is unset"):
        table_of_environment()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latent-mode", "none"], "needs codes, and its latent_mode is none"),
        (["--latent-mode", "continuous"], "needs codes, and its latent_mode is continuous"),
        (GEMMA2.split(), "soft cap"),
    ],
)
def test_what_cannot_be_served_so(tiny_run: Any, tmp_path: Path, flags: list[str], message: str) -> None:
    from megatron_lpc.train import main as train

    train(["--config", tiny_run.config, "--train-iters", "1", *flags, "--save", str(tmp_path / "run")])
    with pytest.raises(ConversionError, match=message):
        export_hf(tmp_path / "run", tmp_path / "out", form="serving")
    assert not (tmp_path / "out").exists()


def test_the_package_needs_nothing_of_this_project(for_servers: Path) -> None:
    code = "import lpc_serving.latent_table as t, sys; t.table_of_environment(); print('megatron_lpc' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(for_servers / "served"), "LPC_EXPORT": str(for_servers / "served")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=for_servers)
    assert done.stdout.strip() == "False"
