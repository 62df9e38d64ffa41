"""Whole training steps on a fake GPU, case after case.

step_worker.py FAKE_CUDA_LIBRARY OUTPUT.json CASE...

OUTPUT.json gets, by case and rank: `waits`, those of the last step, and `problems`, what is on the wrong device or in
the wrong precision; or, by case, the `error` that ended it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

ctypes.CDLL(sys.argv[1])  # Before torch, which looks for a GPU when it is imported.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "distributed")]

import json  # noqa: E402
import math  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from dataclasses import asdict  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from fake_cuda import join_world, pretend, received_shapes  # noqa: E402
from host_waits import HostWaits  # noqa: E402
from layout_cases import layout_config  # noqa: E402
from step_cases import CASES, FOR_A_GPU, STEPS, Case, micro_batches  # noqa: E402
from tensor_checks import TensorChecks, wrong_loss, wrong_state  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from megatron_lpc.config import validate, with_options  # noqa: E402
from megatron_lpc.platform import select_platform  # noqa: E402
from megatron_lpc.platform.process_groups import destroy_process_groups  # noqa: E402
from megatron_lpc.training import step as step_module  # noqa: E402
from megatron_lpc.training.loaders import micro_batch_planner  # noqa: E402
from megatron_lpc.training.objective import TrainingLoss  # noqa: E402
from megatron_lpc.training.policy import build_policy, make_trainable  # noqa: E402
from megatron_lpc.training.reference import CachedReference, Reference, build_references  # noqa: E402
from megatron_lpc.training.setup import RunContext, split_world  # noqa: E402


def run_case(case: Case, rank: int, waits: HostWaits) -> dict[str, Any]:
    """Steps of one rank, built as `training/build.py` builds them."""
    checks = TensorChecks()
    join_world(rank, case.world_size)
    config = with_options(layout_config(case.layout, case.model), **FOR_A_GPU | case.options)
    validate(config, case.world_size, "cuda")
    context = split_world(config, select_platform("cuda", 0))
    chunks = build_policy(context)
    reference = reference_of(context, chunks)
    policy = make_trainable(context, chunks, train_iters=10)
    step_module.TrainingLoss = checked_loss(checks)
    train_step = step_module.TrainStep(context, policy, reference)
    planner = micro_batch_planner(context, SimpleNamespace(pad_id=0))
    sequence_shards = config.parallel.tensor_model_parallel_size if config.parallel.sequence_parallel else 1
    for step in range(STEPS):
        batches = planner.collate(micro_batches(planner))
        sequences, length = batches[0].tokens.shape
        hidden = (length // sequence_shards, sequences, config.model.hidden_size)
        checks.activation_elements = math.prod(hidden)
        waits.found.clear()
        with received_shapes(waits, hidden), checks:
            assert train_step(batches, step).updated
    found = {"waits": [asdict(wait) for wait in waits.found], "problems": [*checks.problems, *wrong_state(policy)]}
    destroy_process_groups()
    return found


def reference_of(context: RunContext, chunks: list[nn.Module]) -> Reference:
    if context.config.loss.reference == "precomputed":
        return CachedReference(torch.zeros(100, 2))
    (reference,) = build_references(context, chunks, [("train", None)])
    return reference


def checked_loss(checks: TensorChecks) -> type[TrainingLoss]:
    class CheckedLoss(TrainingLoss):
        def __call__(self, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total, metrics = super().__call__(*args)
            checks.problems |= dict.fromkeys(wrong_loss(total, metrics))
            return total, metrics

    return CheckedLoss


def main() -> None:
    output, names = Path(sys.argv[2]), sys.argv[3:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    waits = HostWaits()
    pretend(waits)
    results: dict[str, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        for name in names:
            case = CASES[name]
            try:
                results[name] = {rank: run_case(case, rank, waits) for rank in case.ranks}
            except Exception:
                results[name] = {"error": traceback.format_exc()}
                destroy_process_groups()
    output.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
