"""Time and extra memory of the providers of a case, side by side."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from benchmarks.kernels.clock import seconds
from benchmarks.kernels.memory import extra_memory
from benchmarks.kernels.pair_providers import OTHER_LOSSES
from benchmarks.kernels.providers import Case, providers_of
from benchmarks.kernels.step import Step, Unavailable


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
        deciles = statistics.quantiles(self.times, n=10, method="inclusive")
        return deciles[quantile // 10 - 1] * 1e3


def measure(case: Case, names: list[str], rounds: int, clock: str = "wall") -> list[Result]:
    """Run the providers in turn, `rounds` times each, in this process; memory by `extra_memory`.

    Every turn is two runs, of which the second counts: the first touches pages that the provider before may have given
    back to the system, which takes a tenth of a second on a virtual machine that hands free memory back to its host.

    A provider that cannot run, or whose loss is not that of the first one, gives a result with the reason.

    clock: of `CLOCKS`, for a case on CPU.
    """
    steps, notes = _working_steps(case, names)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            times[name].append(seconds(step, case.device, clock))
    memory = {name: extra_memory(case, name, step) for name, step in steps.items()}
    return [Result(name, tuple(times.get(name, ())), memory.get(name), notes.get(name, "")) for name in names]


def _working_steps(case: Case, names: list[str]) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of the providers that run and give the right loss, and why the others do not, by name."""
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    expected: float | None = None
    for name in names:
        try:
            step = providers_of(case)[name](case)
            loss = float(step())
            if name not in OTHER_LOSSES:
                expected = loss if expected is None else expected
                _check_loss(case, loss, expected)
            steps[name] = step
        except Unavailable as error:
            notes[name] = str(error)
        except Exception as error:  # other libraries may fail in any way
            first_line = (str(error).strip().splitlines() or [""])[0]
            notes[name] = f"{type(error).__name__}: {first_line}"
    return steps, notes


def _check_loss(case: Case, loss: float, expected: float) -> None:
    """Raises Unavailable for a loss that is not the expected one, or NaN."""
    tolerance = 1e-4 if case.dtype == torch.float32 else 2e-2
    if not abs(loss - expected) <= tolerance * max(1.0, abs(expected)):
        raise Unavailable(f"its loss is {loss:.6g}, that of the first provider {expected:.6g}")
