"""One of two tensor parallel ranks: runs every case twice and writes OUTPUT/RANK.pt.

torchrun --nproc-per-node 2 pair_logps_worker.py OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from pair_logps_cases import CASES, run

CALLS: list[int] = []


def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
    CALLS.append(tensor.numel())
    return all_reduce(tensor, *args, **kwargs)


dist.init_process_group("gloo")
all_reduce, dist.all_reduce = dist.all_reduce, counted
rank = dist.get_rank()
results = {}
for name, case in CASES.items():
    again = run(case, rank, dist.group.WORLD)
    CALLS.clear()
    results[name] = run(case, rank, dist.group.WORLD)
    assert all(torch.equal(again[key], value) for key, value in results[name].items()), f"{name}: two runs differ"
    results[name]["collectives"] = torch.tensor(CALLS)
torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
