"""Fit the vectors of groups to their support sets, and save them: fit_worker.py CONFIG DATA OUTPUT [FLAG ...]"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from megatron_lpc.config import with_options
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.evaluation.support import draw_support
from megatron_lpc.training.setup import start_distributed


def main() -> None:
    config_file, source, output, *flags = sys.argv[1:]
    config = parse_command(["--config", config_file, *flags]).config
    scorer = CheckpointScorer(start_distributed(with_options(config, train_data=[source])))
    data = scorer.open("support", source)
    support_sets = draw_support([str(group) for group in data.groups], 3, seed=0)
    fitted = scorer.fit_group_vectors(data, support_sets, SupportOptions(pairs=3, steps=4, lr=0.025))
    torch.save(fitted, f"{output}-{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
