"""Extra memory of a step."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.providers import Case, providers_of
from benchmarks.kernels.step import Step
from benchmarks.resident_memory import resident

_CLEAR_REFS = Path("/proc/self/clear_refs")


def extra_memory(case: Case, name: str, step: Step) -> int | None:
    """Bytes above those before the step, at its highest point.

    CUDA: PyTorch's own count. CPU: resident memory of a fresh process; None where Linux's counts are missing.
    """
    if case.device == "cpu":
        return _in_fresh_process(case, name) if _CLEAR_REFS.exists() else None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _in_fresh_process(case: Case, name: str) -> int:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_resident_peak, args=(case, name, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError as error:
        process.join()
        raise RuntimeError(
            f"the process that measures the memory of {name} ended with status {process.exitcode}"
        ) from error
    finally:
        process.join()


def _send_resident_peak(case: Case, name: str, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    provider = providers_of(case)[name]
    # What the first call of any size loads and sets up once is not part of the step; a compiler works for one size.
    compiled = name == "compile"
    step = provider(case if compiled else _tiny(case))
    step()
    if not compiled:
        step = provider(case)
    _CLEAR_REFS.write_text("5", encoding="ascii")
    before = resident("VmHWM")
    step()
    sender.send(resident("VmHWM") - before)


def _tiny(case: Case) -> Case:
    if isinstance(case, PairCase):
        return replace(case, model="8x32", tokens=8, response=2, tp=1)
    return replace(case, pairs=2, codes=4, hidden_size=8)
