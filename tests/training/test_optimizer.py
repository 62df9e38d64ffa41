from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer.optimizer import FP32Optimizer

from megatron_lpc.config import Config
from megatron_lpc.training import optimizer as optimizer_module
from megatron_lpc.training import optimizer_state
from megatron_lpc.training.optimizer import build_optimizer, choose_adam_kernel
from megatron_lpc.training.optimizer_state import optimizer_updates, restore_optimizer_state, sharded_optimizer_state


def adam(device: str = "cpu") -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    torch.manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(4, 3, device=device))
    return parameter, torch.optim.AdamW([parameter], lr=0.1)


@pytest.mark.parametrize(("device", "fused"), [("cpu", False), ("cuda", True)])
def test_adam_never_copies_all_parameters(device: str, fused: bool) -> None:
    """`foreach` is torch's default on CUDA."""
    inner = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    inner.param_groups[0]["params"] = [SimpleNamespace(is_cuda=device == "cuda")]
    choose_adam_kernel(inner)
    assert inner.param_groups[0]["fused"] is fused
    assert inner.param_groups[0]["foreach"] is False


def test_every_optimizer_of_a_run_gets_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the backbone and of the head, say; a stub holds no parameters."""
    parts = [SimpleNamespace(is_stub_optimizer=False, optimizer=adam()[1]) for _ in range(2)]
    chain = SimpleNamespace(chained_optimizers=[SimpleNamespace(is_stub_optimizer=True), *parts])
    monkeypatch.setattr(optimizer_module, "get_megatron_optimizer", lambda *_, **__: chain)
    assert build_optimizer(Config(), []) is chain
    assert [part.optimizer.param_groups[0]["foreach"] for part in parts] == [False, False]


def test_an_optimizer_of_another_library_keeps_its_kernel() -> None:
    class FusedAdam(torch.optim.Optimizer):
        pass

    inner = FusedAdam([torch.nn.Parameter(torch.ones(2))], {"lr": 0.1})
    choose_adam_kernel(inner)
    assert not {"fused", "foreach"} & inner.param_groups[0].keys()


def test_kernel_on_a_cpu_is_the_default_one() -> None:
    results = []
    for choose in (choose_adam_kernel, lambda inner: None):
        parameter, inner = adam()
        choose(inner)
        for _ in range(3):
            parameter.grad = parameter.detach().cos()
            inner.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def wrapped(inner: torch.optim.AdamW) -> FP32Optimizer:
    """megatron-core's optimizer around torch's, with the state that megatron-core gives it."""

    def init_state(optimizer: torch.optim.Optimizer, config: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not optimizer.state[parameter]:
                    optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                    optimizer.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)

    optimizer = object.__new__(FP32Optimizer)
    optimizer.__dict__.update(optimizer=inner, config=None, init_state_fn=init_state, is_stub_optimizer=False)
    return optimizer


def _sharded(parameter: torch.nn.Parameter) -> ShardedTensor:
    """As in a model's sharded state dict, whose data are its own parameters."""
    sharded = ShardedTensor.from_rank_offsets("w", parameter.detach(), replica_id=(0, 0, 0))
    sharded.data = parameter
    return sharded


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
@pytest.mark.parametrize("updates", [0, 2])
def test_training_goes_on_after_state_was_read_and_restored(fused: bool, updates: int) -> None:
    """With no update made yet, torch took megatron-core's state for complete and missed its steps."""

    def step(parameter: torch.nn.Parameter, inner: torch.optim.AdamW) -> None:
        parameter.grad = parameter.detach().cos()
        inner.step()

    def fresh() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        parameter, inner = adam()
        inner.param_groups[0].update(fused=fused, foreach=False)
        return parameter, inner

    straight, straight_inner = fresh()
    saved, saved_inner = fresh()
    for _ in range(updates):
        step(straight, straight_inner)
        step(saved, saved_inner)
    weights = {"w": _sharded(saved)}
    state = sharded_optimizer_state(wrapped(saved_inner), weights)
    assert optimizer_updates(wrapped(saved_inner)) == updates

    resumed, resumed_inner = fresh()
    with torch.no_grad():
        resumed.copy_(saved)
    loaded = {name: {k: [t.data.clone() for t in ts] for k, ts in kinds.items()} for name, kinds in state.items()}
    restore_optimizer_state(wrapped(resumed_inner), {"w": _sharded(resumed)}, loaded, updates)
    for parameter, inner in ((straight, straight_inner), (saved, saved_inner), (resumed, resumed_inner)):
        step(parameter, inner)
        assert int(inner.state[parameter]["step"]) == updates + 1
        assert torch.equal(parameter, straight)


def test_steps_lie_where_the_kernel_reads_them() -> None:
    """On the device for the fused kernel, on the host otherwise; a meta tensor stands for one on a GPU."""
    for fused, device in ((True, "meta"), (False, "cpu")):
        parameter, inner = adam("meta")
        inner.param_groups[0].update(fused=fused, foreach=False)
        sharded_optimizer_state(wrapped(inner), {"w": _sharded(parameter)})
        assert inner.state[parameter]["step"].device.type == device


@pytest.mark.parametrize(("start", "replica_id"), [(None, (0, 1, 2)), (3, (0, 1, 0))], ids=["whole", "piece"])
def test_who_saves_what_a_rank_keeps(
    monkeypatch: pytest.MonkeyPatch, start: int | None, replica_id: tuple[int, int, int]
) -> None:
    """Only the first of several copies is saved. A piece is on one data parallel rank, and copied by tensor parallel
    ranks that have the same parameter."""
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    leaf = ShardedTensor.from_rank_offsets("w", parameter.detach(), replica_id=(0, 1, 2))
    leaf.data = parameter
    kept = torch.arange(12.0) if start is None else torch.arange(4.0)
    slot = optimizer_state._Slot(parameter, {"exp_avg": kept}, start)
    monkeypatch.setattr(optimizer_state, "_all_slots", lambda _: [slot])
    pieces = sharded_optimizer_state(wrapped(adam()[1]), {"w": leaf})["w"]["exp_avg"]
    assert {piece.replica_id for piece in pieces} == {replica_id}
    assert sum(piece.data.numel() for piece in pieces) == kept.numel()
