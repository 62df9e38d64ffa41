"""Train with losses or gradients made NaN at chosen steps.

python diverging_worker.py 2:gradient 5:loss … FLAGS OF megatron_lpc.train
"""

from __future__ import annotations

import sys
from typing import Any

import megatron_lpc.train as program
import megatron_lpc.training.step as steps


def main() -> None:
    arguments = sys.argv[1:]
    first_flag = next(place for place, argument in enumerate(arguments) if argument.startswith("--"))
    bad = dict(argument.split(":") for argument in arguments[:first_flag])
    train_pass, step = steps.train_pass, 0

    def diverging(chunks: Any, batches: Any, query: Any, micro_batch_loss: Any) -> Any:
        nonlocal step
        step += 1

        def poisoned(batch: Any, scores: Any) -> Any:
            total, metrics = micro_batch_loss(batch, scores)
            loss = metrics["loss"] * float("nan") if bad[str(step)] == "loss" else metrics["loss"]
            return total * float("nan"), metrics | {"loss": loss}

        return train_pass(chunks, batches, query, poisoned if str(step) in bad else micro_batch_loss)

    steps.train_pass = diverging
    program.main(arguments[first_flag:])


if __name__ == "__main__":
    main()
