"""One of several tensor parallel ranks: runs every case for that many ranks twice and writes OUTPUT/RANK.pt.

torchrun --nproc-per-node N pair_logps_worker.py OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from pair_logps_cases import CASES, run

CALLS: list[str] = []
"""Collectives in order: kind and numbers handed in, `!` when started without waiting for the end."""


def noted(kind: str, collective: Callable[..., object], given: int) -> Callable[..., object]:
    def call(*args: torch.Tensor, **kwargs: object) -> object:
        CALLS.append(f"{kind} {args[given].numel()}{'!' if kwargs.get('async_op') else ''}")
        return collective(*args, **kwargs)

    return call


dist.init_process_group("gloo")
dist.all_reduce = noted("reduce", dist.all_reduce, 0)
dist.all_gather_into_tensor = noted("gather", dist.all_gather_into_tensor, 1)
rank, ranks = dist.get_rank(), dist.get_world_size()
results = {}
for name, case in CASES.items():
    if len(case.shards) != ranks:
        continue
    again = run(case, rank, dist.group.WORLD)
    CALLS.clear()
    outputs = run(case, rank, dist.group.WORLD)
    assert all(torch.equal(again[key], value) for key, value in outputs.items()), f"{name}: two runs differ"
    results[name] = {"outputs": outputs, "collectives": list(CALLS)}
torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
