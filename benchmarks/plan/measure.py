"""One rank of a case: `python -m benchmarks.plan.measure CASE FOLDER`, under torchrun where it has several.

Writes FOLDER/RANK.json with the peak of resident memory in a step beyond what the process held before the model was
built, in bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.plan.cases import CASES, pairs_of_a_step
from benchmarks.resident_memory import resident
from megatron_lpc.training.loaders import micro_batch_planner
from megatron_lpc.training.policy import build_policy, make_trainable
from megatron_lpc.training.reference import build_references
from megatron_lpc.training.setup import start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep


def main() -> None:
    name, folder = sys.argv[1:]
    context = start_distributed(CASES[name].config())
    held = resident("VmRSS")
    chunks = build_policy(context)
    (reference,) = build_references(context, chunks, [("train", None)])
    step = TrainStep(context, make_trainable(context, chunks, train_iters=10), reference)
    tokenizer: Any = SimpleNamespace(pad_id=0)
    planner = micro_batch_planner(context, tokenizer)
    batches = planner.collate(pairs_of_a_step(context.config, planner, context.groups.dp_size))
    step(batches, 0)  # Makes the state of the optimizer.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Forgets the peak so far.
    assert step(batches, 1).updated
    peak = resident("VmHWM") - held
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(peak), encoding="utf-8")
    stop_distributed()


if __name__ == "__main__":
    main()
