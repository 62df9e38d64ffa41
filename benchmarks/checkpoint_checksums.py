"""What checksums add to a save, and what the hash functions of the choice cost.

    python -m benchmarks.checkpoint_checksums [--folder FOLDER] [--megabytes N] [--repeats N]

One process saves N MB of fp32 tensors into FOLDER, in ways that differ by one thing each, and reads them back to verify
them. Of each the median of the repeats is printed, and that of its ratio to the save without checksums of the same
repeat, with quartiles.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import xxhash

from megatron_lpc.platform import select_platform
from megatron_lpc.terminal import markdown_table

_TENSOR = 64
"""Megabytes of one tensor."""
SAVES = {"save with torch's CRC-32": False, "save": False, "save with checksums": True}
"""Name -> whether checksums are computed."""


@dataclass(frozen=True)
class Cost:
    """Of a piece of work."""

    seconds: float
    cpu_seconds: float
    """Of this process; what else runs on the machine hardly changes them."""


def cost(work: Callable[[], object]) -> Cost:
    """Do it."""
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - began, time.process_time() - cpu_began)


def measure(folder: Path, megabytes: int, repeats: int) -> dict[str, list[Cost]]:
    """Name of what was done -> its cost in each repeat."""
    select_platform("cpu", 0)
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from megatron_lpc.training import checkpoint_writer
    from megatron_lpc.training.checkpoint_integrity import checksums
    from megatron_lpc.training.checkpoint_writer import OneTensorAtATime

    numbers = torch.randn(_TENSOR * 10**6 // 4)
    state = {
        f"tensor_{i}": ShardedTensor.from_rank_offsets(f"tensor_{i}", numbers.clone())
        for i in range(megabytes // _TENSOR)
    }
    content = numbers.numpy().tobytes()
    orders = random.Random(0)
    found: dict[str, list[Cost]] = defaultdict(list)
    for repeat in range(-1, repeats):  # The first one warms up.
        of_repeat: dict[str, Cost] = {}
        # In any order: the disk may be busy with what the one before has left to it.
        for name in orders.sample(list(SAVES), len(SAVES)):
            place = Path(tempfile.mkdtemp(dir=folder))
            writer = OneTensorAtATime(SAVES[name])
            # The writer switches it off.
            crc32 = patch.object(checkpoint_writer, "without_crc32", nullcontext) if "CRC" in name else nullcontext()
            with crc32:
                of_repeat[name] = cost(lambda writer=writer, place=place: writer.save(dict(state), place))
            if name == "save with checksums":
                files = list(place.glob("*.distcp"))
                of_repeat["verify"] = cost(lambda files=files: checksums(files))
            shutil.rmtree(place)
        for hash_name, new in (("XXH3", xxhash.xxh3_128), ("SHA-256", hashlib.sha256), ("BLAKE2b", hashlib.blake2b)):
            of_repeat[f"{hash_name}, bare"] = cost(lambda new=new: [new(content).digest() for _ in state])
        for name, value in of_repeat.items() if repeat >= 0 else ():
            found[name].append(value)
    return found


def rows(found: dict[str, list[Cost]]) -> list[tuple[str, ...]]:
    """Medians of the repeats, and of ratios to what the save without checksums took in the same repeat."""
    table = []
    for name in (*SAVES, *(name for name in found if name not in SAVES)):
        cells = [name]
        for field in ("seconds", "cpu_seconds"):
            values, saves = ([getattr(each, field) for each in found[of]] for of in (name, "save"))
            ratios = sorted(value / save for value, save in zip(values, saves, strict=True))
            quarter = len(ratios) // 4
            middle = f"{statistics.median(ratios):.3f} ({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"
            cells += [f"{statistics.median(values):.3f}", "1" if name == "save" else middle]
        table.append(tuple(cells))
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    found = measure(options.folder, options.megabytes, options.repeats)
    dist.destroy_process_group()
    print(markdown_table((f"of {options.megabytes} MB", "seconds", "ratio", "CPU seconds", "ratio"), rows(found)))


if __name__ == "__main__":
    main()
