"""Time, extra memory, and the speed limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.kernels import mix_case, pair_providers
from benchmarks.kernels.mix_case import MixCase
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_providers import Step, Unavailable
from benchmarks.resident_memory import resident

Case = PairCase | MixCase
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds gone by; or those that the threads of this process ran, which others on the machine disturb less."""


@dataclass(frozen=True)
class Result:
    """What a provider took for one case; without times, `note` says why."""

    provider: str
    times: tuple[float, ...] = ()
    """Seconds of each round."""
    memory: int | None = None
    """Bytes above what the inputs take, at the highest point of a step, gradients included."""
    note: str = ""

    def milliseconds(self, quantile: int) -> float:
        """The 20th, 50th or 80th percentile of the rounds."""
        if len(self.times) == 1:
            return self.times[0] * 1e3
        return statistics.quantiles(self.times, n=10, method="inclusive")[quantile // 10 - 1] * 1e3


def providers_of(case: Case) -> Mapping[str, Callable[..., Step]]:
    """All providers for a case of its kind."""
    return pair_providers.PROVIDERS if isinstance(case, PairCase) else mix_case.PROVIDERS


def measure(case: Case, names: list[str], rounds: int, clock: str = "wall") -> list[Result]:
    """Run the providers in turn, `rounds` times each, in this process; memory by `extra_memory`.

    Every turn is two runs, the second of which counts: the first takes up pages that the provider before may have left the system to
    find anew, a tenth of a second on a virtual machine that hands free memory back to its host.

    clock: of `CLOCKS`, for a case on CPU.

    A provider that cannot run, or whose loss is not that of the first one, gives a result with the reason.
    """
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    expected: float | None = None
    for name in names:
        try:
            step = providers_of(case)[name](case)
            loss = float(step())
            if name not in pair_providers.OTHER_JOBS:
                expected = loss if expected is None else expected
                if not abs(loss - expected) <= (1e-4 if case.dtype == torch.float32 else 2e-2) * max(
                    1.0, abs(expected)
                ):
                    raise Unavailable(f"its loss is {loss:.6g}, that of the first provider {expected:.6g}")
            steps[name] = step
        except Unavailable as error:
            notes[name] = str(error)
        except Exception as error:  # other people's code, in all its ways
            notes[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            times[name].append(seconds(step, case.device, clock))
    memory = {name: extra_memory(case, name, step) for name, step in steps.items()}
    return [Result(name, tuple(times.get(name, ())), memory.get(name), notes.get(name, "")) for name in names]


def seconds(step: Callable[[], object], device: str, clock: str = "wall") -> float:
    """Of one run: by that clock on CPU, from a cold second-level cache by the GPU's own on CUDA."""
    if device == "cpu":
        start = CLOCKS[clock]()
        step()
        return CLOCKS[clock]() - start
    # Larger than the second-level cache of any GPU.
    torch.empty(1 << 28, dtype=torch.int8, device=device).zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def extra_memory(case: Case, name: str, step: Step) -> int | None:
    """Bytes above those before the step. CUDA: PyTorch's own count. CPU: resident memory of a fresh process; None where Linux's
    counts are missing.
    """
    if case.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_resident_peak, args=(case, name, torch.get_num_threads(), sender))
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


def _resident_peak(case: Case, name: str, threads: int, sender) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(threads)
    # What is loaded and set up once, by the first call of any size, is no part of the step; a compiler works for one size.
    step = providers_of(case)[name](case if name == "compile" else _tiny(case))
    step()
    if name != "compile":
        step = providers_of(case)[name](case)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmHWM")
    step()
    sender.send(resident("VmHWM") - before)


def _tiny(case: Case) -> Case:
    if isinstance(case, PairCase):
        return replace(case, model="8x32", rows=8, response=2, tp=1)
    return replace(case, pairs=2, codes=4, width=8)


def product_ceiling(case: PairCase, rounds: int, clock: str = "wall") -> float:
    """FLOP/s of the vendor's [N, H] x [H, V] product of the rows with loss."""
    rows = max(1, round(case.rows * (1 - case.masked)))
    left = torch.randn(rows, case.width, dtype=case.dtype, device=case.device)
    right = torch.randn(case.words, case.width, dtype=case.dtype, device=case.device).t()
    product = left @ right
    return (
        2
        * rows
        * case.words
        * case.width
        / _median(lambda: torch.mm(left, right, out=product), case.device, rounds, clock)
    )


def copy_ceiling(device: str, rounds: int, clock: str = "wall") -> float:
    """Bytes/s of a large copy, read and written ones counted."""
    source = torch.zeros(1 << (30 if device != "cpu" else 27), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _median(lambda: target.copy_(source), device, rounds, clock)


def _median(step: Callable[[], object], device: str, rounds: int, clock: str) -> float:
    step()
    return statistics.median(seconds(step, device, clock) for _ in range(rounds))
