"""How far a run is: what a checkpoint keeps beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run is. Stored in a checkpoint under these names."""

    iteration: int = 0
    """Steps done."""
    consumed_samples: int = 0
    """Pairs seen."""
    bad_steps: int = 0
    """Consecutive steps until now that were skipped."""
    train_iters: int = 0
    """Steps of the whole run, over which schedules extend."""
    data: str | None = None
    """Fingerprint of the training data; None in a checkpoint that does not know it."""
    positions: list[dict[str, Any]] = field(default_factory=list)
    """With streamed data, where the reader of each data parallel rank was. Set only in a checkpoint; empty without
    streaming."""

    def after_step(self, pairs: int, updated: bool) -> RunState:
        """The state one step of `pairs` pairs later; `updated` says whether that step changed the weights."""
        return replace(
            self,
            iteration=self.iteration + 1,
            consumed_samples=self.consumed_samples + pairs,
            bad_steps=0 if updated else self.bad_steps + 1,
            positions=[],
        )


def unfit_fields(saved: dict[str, Any]) -> list[str]:
    """Names in a saved state that are not those of `RunState`, or whose values are of another kind."""
    kinds: dict[str, Any] = {"data": (str, type(None)), "positions": list}
    names = {field.name for field in fields(RunState)}
    return [name for name, value in saved.items() if name not in names or not isinstance(value, kinds.get(name, int))]
