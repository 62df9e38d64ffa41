"""How fast each GPU runs the kernels of a step, by the extra `resiliency` (nvidia-resiliency-ext, which asks CUPTI)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from math import isnan
from typing import Any


def has_kernel_times() -> bool:
    """Whether the extra is installed."""
    return find_spec("nvidia_resiliency_ext") is not None


class KernelTimes:
    """The kernels of steps on this GPU, compared with those of the other ranks.

    CUPTI serves one profiler of a process at a time, so not together with `--profile`.
    """

    def __init__(self) -> None:
        from nvidia_resiliency_ext.straggler import Detector

        self._detector: Any = Detector
        if Detector.initialized:  # By an earlier run of this process.
            Detector.shutdown()
        self._detector.initialize(scores_to_compute=["relative_perf_scores"], gather_on_rank0=True)
        self._step: AbstractContextManager[None] | None = None

    def begin_step(self) -> None:
        """Kernels that are launched from now on count."""
        self._step = self._detector.detection_section("step")
        self._step.__enter__()

    def end_step(self) -> None:
        """No more do."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def speeds(self) -> dict[int, float]:
        """Speed of each rank since the last call, as a share of the fastest rank's, in (0, 1].

        It is the mean over kernels that all ranks run, NCCL's left out, by the time that they take; a rank that shares
        none is left out. Empty on ranks other than 0.

        Collectives: those of nvidia-resiliency-ext on the world's group.
        """
        report = self._detector.generate_report()
        scores = report.gpu_relative_perf_scores if report else {}
        return {rank: score for rank, score in scores.items() if not isnan(score)}
