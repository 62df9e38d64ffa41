"""How many micro-batches a pipeline stage holds, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PipelineSchedule:
    """1F1B, interleaved where a rank holds several model chunks."""

    stages: int
    micro_batches: int
    """Of one step."""
    chunks: int = 1
    """Model chunks of each rank."""

    def chunks_in_flight(self, pipeline_rank: int) -> int:
        """Micro-batches of which a rank holds activations at one time, counted for each of its chunks.

        1F1B: as many as there are stages from it to the last. Interleaved: megatron-core's warm-up passes and one more.
        """
        if self.chunks == 1:
            return min(self.micro_batches, self.stages - pipeline_rank)
        total = self.micro_batches * self.chunks
        warm_up = 2 * (self.stages - pipeline_rank - 1) + (self.chunks - 1) * self.stages
        return min(total, warm_up + 1)

    @property
    def bubble(self) -> float:
        """Share of a step in which a rank waits for others, where all stages take as long.

        (p - 1) / v of m + (p - 1) / v passes (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
        """
        waiting = (self.stages - 1) / self.chunks
        return waiting / (self.micro_batches + waiting)

    def seconds(self, of_stages: list[float]) -> float:
        """Time of all micro-batches.

        Args:
            of_stages: seconds of a micro-batch's forward and backward pass in each stage, all its chunks together.
        """
        slowest = max(of_stages)
        return self.micro_batches * slowest + (sum(of_stages) - slowest) / self.chunks
