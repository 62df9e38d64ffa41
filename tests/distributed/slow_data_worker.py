"""Open data sets that rank 0 tokenizes for longer than a collective may wait.

    torchrun … slow_data_worker.py CONFIG BAD_DATA SECONDS

Each rank prints what it got: the pairs of the training data, and the error that BAD_DATA causes.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from megatron_lpc.config import ConfigError, load_yaml
from megatron_lpc.data import row_chunks
from megatron_lpc.training.inputs import open_dataset, open_tokenizer


def main() -> None:
    config, bad_data, seconds = load_yaml(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    dist.init_process_group("gloo")
    tokenizer = open_tokenizer(config)
    dist.barrier()
    # Not before, for a busy machine starts slowly.
    _set_pg_timeout(timedelta(seconds=seconds))
    inner = row_chunks.encode_pair

    def encode_pair(*arguments):
        time.sleep(2 * seconds / 48)
        return inner(*arguments)

    row_chunks.encode_pair = encode_pair
    began = time.monotonic()
    data = open_dataset(config, tokenizer, config.data.train_data, "train")
    assert time.monotonic() - began > 1.5 * seconds
    try:
        open_dataset(config, tokenizer, [bad_data], "bad")
    except ConfigError as error:
        problem = str(error)
    _set_pg_timeout(timedelta(minutes=5))
    total = torch.ones(1)
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {int(total)}: {len(data)} pairs; {problem}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
