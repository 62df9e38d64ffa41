"""What checksums add to a save, and what the hash functions of the choice cost.

    python -m benchmarks.checkpoint_checksums [--folder FOLDER] [--megabytes N] [--repeats N]

One process saves N MB of fp32 tensors into FOLDER, without and with checksums in turn, and reads them back to verify
them. Of each the median of the repeats is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
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


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path, megabytes: int, repeats: int) -> dict[str, float]:
    """Name of what was done -> median of its seconds."""
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
    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(-1, repeats):  # The first one warms up.
        of_repeat: dict[str, float] = {}
        for name, has_checksums in (
            ("save with torch's CRC-32", False),
            ("save", False),
            ("save with checksums", True),
        ):
            place = Path(tempfile.mkdtemp(dir=folder))
            writer = OneTensorAtATime(has_checksums)
            # The writer switches CRC-32 off.
            with patch.object(checkpoint_writer, "without_crc32", nullcontext) if "CRC" in name else nullcontext():
                of_repeat[name] = seconds(lambda writer=writer, place=place: writer.save(dict(state), place))
            if has_checksums:
                files = list(place.glob("*.distcp"))
                of_repeat["verify"] = seconds(lambda files=files: checksums(files))
            shutil.rmtree(place)
        for hash_name, new in (("XXH3", xxhash.xxh3_128), ("SHA-256", hashlib.sha256), ("BLAKE2b", hashlib.blake2b)):
            of_tensor = seconds(lambda new=new: new(content).digest())
            of_repeat[f"{hash_name}, bare"] = of_tensor * len(state)
        for name, value in of_repeat.items() if repeat >= 0 else ():
            found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


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
    medians = measure(options.folder, options.megabytes, options.repeats)
    dist.destroy_process_group()
    rows = [(name, f"{value:.3f}", f"{value / medians['save']:.3f}") for name, value in medians.items()]
    print(markdown_table(("of " + f"{options.megabytes} MB", "seconds", "of a save"), rows))


if __name__ == "__main__":
    main()
