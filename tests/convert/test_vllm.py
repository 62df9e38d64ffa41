"""The model and the logits processors of an export for servers, under stand-ins for what they take of vLLM (0.32)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, reload
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from serving_export import CODES, MIXTURE
from torch import Tensor

from megatron_lpc.convert.hub.latent_table import LatentTable, table_of_environment

ARCHITECTURE = "LlamaForCausalLM"
HUB = "megatron_lpc.convert.hub"


class _Direction:
    UNIDIRECTIONAL = "unidirectional"
    SWAP = "swap"


@dataclass
class _Update:
    removed: list[int]
    added: list[tuple[Any, ...]]
    moved: list[tuple[int, int, str]]


class _Registry:
    """vLLM's, of one stock class."""

    def __init__(self) -> None:
        stock = type(
            ARCHITECTURE, (), {"compute_logits": lambda self, hidden: torch.zeros(len(hidden), self.vocabulary)}
        )
        self.models: dict[str, Any] = {ARCHITECTURE: SimpleNamespace(load_model_cls=lambda: stock)}

    def register_model(self, architecture: str, target: str) -> None:
        module, name = target.split(":")
        self.models[architecture] = SimpleNamespace(load_model_cls=lambda: getattr(import_module(module), name))

    def resolve_model_cls(self, architectures: list[str], config: Any) -> tuple[type, str]:
        return self.models[architectures[0]].load_model_cls(), architectures[0]


CONFIG = SimpleNamespace(model_config=SimpleNamespace(architectures=[ARCHITECTURE]))


@pytest.fixture
def registry(for_servers: Path, monkeypatch: pytest.MonkeyPatch) -> _Registry:
    registry = _Registry()
    interface = {"LogitsProcessor": object, "BatchUpdate": _Update, "MoveDirectionality": _Direction}
    modules = {"v1.sample.logits_processor": interface, "v1.worker.gpu.sample.logits_processor.interface": interface}
    for name, content in modules.items():
        module = ModuleType(f"vllm.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vllm = ModuleType("vllm")
    vars(vllm).update(ModelRegistry=registry, __version__="0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for name in ("vllm_model", "vllm_v1", "vllm_v2"):
        monkeypatch.delitem(sys.modules, f"{HUB}.{name}", raising=False)
    monkeypatch.setenv("LPC_EXPORT", str(for_servers / "served"))
    table_of_environment.cache_clear()
    return registry


@pytest.fixture
def vllm_model(registry: _Registry) -> Any:
    module = import_module(f"{HUB}.vllm_model")
    module.register()
    return module


@pytest.fixture
def processor(vllm_model: Any) -> Callable[[str], Any]:
    """The class of an engine."""
    return lambda engine: import_module(f"{HUB}.vllm_{engine}").LatentLogits


@pytest.fixture
def table(for_servers: Path) -> LatentTable:
    return LatentTable(for_servers / "served")


class _Params:
    """As vLLM's sampling parameters: one object for a request, in whatever row it is."""

    def __init__(self, latent: Any) -> None:
        self.extra_args = None if latent is None else {"lpc_latent": latent}


def added_by(table: LatentTable, *latents: Any) -> Tensor:
    """[B, V] what the latents of the rows add."""
    rows = []
    for latent in latents:
        weights = latent if isinstance(latent, Tensor) else table.latent_of({"lpc_latent": latent})
        rows.append(torch.zeros(table.values.size(1)) if weights is None else weights @ table.values)
    return torch.stack(rows)


def test_rows_of_the_v1_engine(processor: Callable[[str], Any], table: LatentTable) -> None:
    latents = processor("v1")(CONFIG, torch.device("cpu"), False)
    vocabulary = table.values.size(1)

    def expect(*rows: Any) -> None:
        logits = torch.randn(len(rows), vocabulary + 3)
        found = latents.apply(logits.clone())
        torch.testing.assert_close(found[:, :vocabulary], logits[:, :vocabulary] + added_by(table, *rows))
        assert torch.equal(found[:, vocabulary:], logits[:, vocabulary:])

    assert not latents.is_argmax_invariant()
    expect(None, None)
    latents.update_state(_Update([], [(0, _Params("warm"), None, []), (1, _Params(None), None, [])], []))
    expect("warm", None)
    latents.update_state(None)
    expect("warm", None)
    latents.update_state(_Update([], [(2, _Params(MIXTURE), None, [])], [(0, 1, _Direction.SWAP)]))
    expect(None, "warm", MIXTURE)
    latents.update_state(_Update([1], [], [(2, 1, _Direction.UNIDIRECTIONAL)]))
    expect(None, MIXTURE)
    latents.update_state(_Update([], [(1, _Params(None), None, [])], []))
    expect(None, None)


class _Engine:
    """Steps of vLLM's V1 engine: logits of the last token of each row, then the processor."""

    def __init__(self, registry: _Registry, latents: Any, table: LatentTable) -> None:
        self._model = registry.models[ARCHITECTURE].load_model_cls()()
        self._model.vocabulary = table.values.size(1)
        self._latents = latents
        self._table = table
        self._hidden_size = 64

    def step(self, *rows: Any) -> Tensor:
        """[B, H] hidden states of a step, in which each row must have had the latent given; at "read mean", the mean
        that the prior infers from this step."""
        hidden = torch.randn(len(rows), self._hidden_size)
        found = self._latents.apply(self.compute_logits(hidden))
        expected = [
            self._table.inferred([row.removeprefix("read ")], hidden[[index]])[0]
            if isinstance(row, str) and row.startswith("read ")
            else row
            for index, row in enumerate(rows)
        ]
        torch.testing.assert_close(found, added_by(self._table, *expected))
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self._model.compute_logits(hidden)


def test_the_prior_reads_the_end_of_the_prompt(
    registry: _Registry, processor: Callable[[str], Any], table: LatentTable
) -> None:
    latents = processor("v1")(CONFIG, torch.device("cpu"), False)
    engine = _Engine(registry, latents, table)
    long, short, fixed = _Params("mean"), _Params("argmax"), _Params("warm")
    long_tokens: list[int] = []
    short_tokens: list[int] = []
    requests = [(0, long, [5] * 9, long_tokens), (1, short, [6], short_tokens), (2, fixed, [7], [])]
    latents.update_state(_Update([], requests, []))
    hidden = engine.step(
        "read mean", "read argmax", "warm"
    )  # The first part of the long prompt, whose token is dropped.
    code = table.inferred(["argmax"], hidden[[1]])[0]
    short_tokens.append(-1)  # The place of a token that is still being computed.
    hidden = engine.step("read mean", code, "warm")
    mean = table.inferred(["mean"], hidden[[0]])[0]
    long_tokens.append(-1)
    engine.step(mean, code, "warm")
    latents.update_state(_Update([], [(3, _Params(None), [8], [])], [(0, 2, _Direction.SWAP)]))
    engine.step("warm", code, mean, None)

    latents.update_state(_Update([2], [], [(3, 2, _Direction.UNIDIRECTIONAL)]))  # The long one is preempted.
    engine.step("warm", code, None)
    latents.update_state(_Update([], [(3, long, [5] * 9, [3, 4])], []))  # It comes back, in a list of its own.
    engine.compute_logits(torch.randn(2, 64))  # As for log-probs of prompts.
    engine.step("warm", code, None, mean)

    latents.update_state(_Update([1], [(1, short, [6], [])], []))  # Preempted before it had a token.
    engine.step("warm", "read argmax", None, mean)


def test_what_the_prior_has_not_read(registry: _Registry, processor: Callable[[str], Any], table: LatentTable) -> None:
    latents = processor("v1")(CONFIG, torch.device("cpu"), False)
    engine = _Engine(registry, latents, table)
    latents.update_state(_Update([], [(0, _Params("mean"), [5], [])], []))
    with pytest.raises(RuntimeError, match="no hidden states of these logits"):
        latents.apply(torch.zeros(1, 320))
    engine.compute_logits(torch.randn(2, 64))
    with pytest.raises(RuntimeError, match="no hidden states of these logits"):
        latents.apply(torch.zeros(1, 320))
    latents.update_state(_Update([], [(0, _Params("mean"), [5], [1])], []))
    with pytest.raises(RuntimeError, match="has not read the prompt"):
        latents.apply(engine.compute_logits(torch.randn(1, 64)))


def test_the_registered_model(
    registry: _Registry, vllm_model: Any, for_servers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = registry.models[ARCHITECTURE]
    vllm_model.register()
    assert registry.models[ARCHITECTURE] is registered, "registered once"
    assert registered.load_model_cls().__name__ == ARCHITECTURE
    vllm_model.check_served(CONFIG)
    registry.models["Other"] = SimpleNamespace(load_model_cls=lambda: object)
    other = SimpleNamespace(model_config=SimpleNamespace(architectures=["Other"]))
    with pytest.raises(ValueError, match="another model than the one served, a Other"):
        vllm_model.check_served(other)
    with pytest.raises(AttributeError, match="no attribute Other"):
        vllm_model.Other  # noqa: B018
    monkeypatch.setenv("LPC_EXPORT", str(tmp_path))
    with pytest.raises(ValueError, match=r"config\.json: is missing"):
        reload(vllm_model).register()
    monkeypatch.delenv("LPC_EXPORT")
    fresh = reload(vllm_model)
    fresh.register()
    assert not fresh.is_registered()


def test_vllm_finds_the_plugin(for_servers: Path) -> None:
    """As vLLM looks for it: an entry point on PYTHONPATH."""
    from importlib.metadata import distributions

    (found,) = [
        entry
        for distribution in distributions(path=[str(for_servers / "served")])
        for entry in distribution.entry_points
        if entry.group == "vllm.general_plugins"
    ]
    assert (found.name, found.module, found.attr) == ("lpc_serving", "lpc_serving.vllm_model", "register")
    assert (for_servers / "served" / "lpc_serving" / "vllm_model.py").exists()
    architectures = json.loads((for_servers / "served" / "config.json").read_text())["architectures"]
    assert architectures == [ARCHITECTURE]


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

    assert latents.add_request(3, _Params("brief"))
    assert not latents.add_request(1, _Params(None))
    expect([3, 1], [3, 3, 1], "brief", "brief", None)
    assert not latents.add_request(3, _Params(None))
    assert latents.add_request(0, _Params("ann"))
    expect([1, 3], [1, 3], None, None)
    expect([0, 3], [3, 0], None, MIXTURE)


@pytest.mark.parametrize("engine", ["v1", "v2"])
def test_admission(processor: Callable[[str], Any], engine: str) -> None:
    processor(engine).validate_params(_Params("ann"))
    with pytest.raises(ValueError, match="add up to 1"):
        processor(engine).validate_params(_Params([0.0] * CODES))


def test_admission_of_what_the_prior_infers(processor: Callable[[str], Any], vllm_model: Any) -> None:
    processor("v1").validate_params(_Params("mean"))
    with pytest.raises(ValueError, match="argmax needs vLLM's V1 model runner"):
        processor("v2").validate_params(_Params("argmax"))
    vllm_model._stock.clear()
    with pytest.raises(ValueError, match="mean needs the plugin `lpc_serving`, which VLLM_PLUGINS leaves out"):
        processor("v1").validate_params(_Params("mean"))
