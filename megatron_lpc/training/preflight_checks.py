"""The checks of `--preflight`, each one line of its table.

Every rank calls every check in the same order, and every rank comes to the same result.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform as python_platform
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_lpc.command_line import UserError, first_few
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.source import BadRow, read_rows
from megatron_lpc.platform import Platform
from megatron_lpc.training.first_rank import wait_for_all_ranks

_PACKAGES = ("torch", "megatron-core", "transformers", "datasets", "triton", "transformer-engine", "megatron-lpc")
_REDUCED_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
_ROUNDS = 5
_MOST_CLOCK_SPREAD = 1.0
"""Seconds that clocks may differ by: metrics, logs and locks of a run carry times."""
_FOLDER_PATIENCE = 10.0
"""Seconds that a shared file system may take to show what another host has written."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    result: str
    is_sound: bool = True


def _gathered(item: Any) -> list[Any]:
    """What each rank gives. Collectives: an all-gather of objects over all ranks."""
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def agreed(name: str, find: Callable[[], str | None]) -> Check:
    """What all ranks find, which should be the same; None is no finding.

    Collectives: an all-gather of objects over all ranks, after `find`, whatever it raises.
    """
    try:
        mine = (True, find())
    except Exception as error:  # Whatever it is, it would come up in the run, and the other ranks are waiting.
        mine = (False, (str(error) or type(error).__name__).splitlines()[0])
    found = _gathered((socket.gethostname(), *mine))
    failed = [f"rank {rank} on {host}: {text}" for rank, (host, is_well, text) in enumerate(found) if not is_well]
    if failed:
        return Check(name=name, result=first_few(failed, "ranks"), is_sound=False)
    ranks: dict[str, list[int]] = {}
    for rank, (_, _, text) in enumerate(found):
        if text is not None:
            ranks.setdefault(text, []).append(rank)
    if len(ranks) == 1:
        return Check(name=name, result=next(iter(ranks)))
    differing = [f"rank {of[0]} and {len(of) - 1} others: {text}" for text, of in ranks.items()]
    return Check(name=name, result=first_few(differing, "groups of ranks"), is_sound=False)


def devices(platform: Platform) -> Check:
    """How many processes on how many hosts, and what they compute on. Collectives: three all-gathers of objects."""
    hosts = _gathered(socket.gethostname())
    per_host = sorted({hosts.count(host) for host in hosts})
    where = f"{len(set(hosts))} hosts x {' or '.join(map(str, per_host))} processes"
    if not platform.is_cuda:
        return agreed("devices", lambda: f"{where}, {os.cpu_count()} CPU cores each")
    free, total = torch.cuda.mem_get_info(platform.device)
    least = min(_gathered(free))
    return agreed(
        "devices", lambda: f"{where}, {platform.name}, {total / 2**30:.0f} GiB, at least {least / 2**30:.1f} free"
    )


def versions() -> str:
    """Of the packages that decide about results."""
    found = [f"python {python_platform.python_version()}"]
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    if torch.cuda.is_available():
        found += [f"CUDA {torch.version.cuda}", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"]
    return ", ".join(found)


def all_reduce(platform: Platform, name: str, group: dist.ProcessGroup) -> Check:
    """Bus bandwidth, 2 (n - 1) / n bytes per second, as nccl-tests report it; of the slowest rank.

    Collectives: barriers and all-reduces over the group, two all-gathers of objects over all ranks.
    """
    label, size = f"all-reduce, {name}", dist.get_world_size(group)
    if max(_gathered(size)) == 1:
        return Check(name=label, result="one process")
    nbytes = _REDUCED_BYTES[platform.device.type]
    tensor = torch.ones(nbytes // 4, device=platform.device)
    seconds = []
    for _ in range(_ROUNDS):
        tensor.fill_(1)
        platform.synchronize()
        dist.barrier(group=group)
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        platform.synchronize()
        seconds.append(time.perf_counter() - began)
    mine = 2 * (size - 1) / size * nbytes / min(seconds) / 1e9
    rates = _gathered((mine, bool((tensor == size).all())))
    slowest = min(range(len(rates)), key=lambda rank: rates[rank][0])
    result = f"{rates[slowest][0]:.1f} GB/s between {size} processes (rank {slowest}; the fastest {max(rates)[0]:.1f})"
    wrong = [str(rank) for rank, (_, is_right) in enumerate(rates) if not is_right]
    if wrong:
        return Check(name=label, result=f"wrong sums on ranks {first_few(wrong, 'ranks')}", is_sound=False)
    return Check(name=label, result=result)


def clocks() -> Check:
    """How far clocks are apart, at most: a barrier does not end everywhere at once, so the least of some rounds.

    Collectives: barriers and all-gathers of objects over all ranks.
    """
    spreads = []
    for _ in range(_ROUNDS):
        dist.barrier()
        times = _gathered(time.time())
        spreads.append(max(times) - min(times))
    spread = min(spreads)
    return Check(name="clocks", result=f"at most {1000 * spread:.0f} ms apart", is_sound=spread < _MOST_CLOCK_SPREAD)


def shared_folder(name: str, folder: str, may_be_of_host: bool = False) -> Check:
    """Every rank writes a file there, or where the folder will be made, and sees those of all others.

    Nothing is left behind. Collectives: three all-gathers of objects over all ranks.

    Args:
        may_be_of_host: each host may have a folder of its own.
    """
    existing = next(path for path in (Path(folder), *Path(folder).resolve().parents) if path.exists())
    token = _gathered(f".preflight-{os.getpid()}-{time.time_ns()}")[0]
    place = existing / token
    number = dist.get_world_size()

    def write_own() -> str:
        place.mkdir(exist_ok=True)
        (place / str(dist.get_rank())).write_text(token)
        return ""

    def see_all() -> str:
        deadline = time.monotonic() + _FOLDER_PATIENCE
        while len(seen := list(place.iterdir())) < number:
            if time.monotonic() > deadline:
                if may_be_of_host:
                    return "writable, but not shared: each host tokenizes for itself"
                raise OSError(
                    f"{existing}: sees the files of {len(seen)} ranks, of {number}; it is not one shared folder"
                )
            time.sleep(0.05)
        free = shutil.disk_usage(existing).free
        return f"{folder}: writable, seen by all, {free / 1e9:,.0f} GB free"

    written = agreed(name, write_own)
    found = agreed(name, see_all) if written.is_sound else written
    wait_for_all_ranks()
    # Each host removes what it sees: without a shared file system each has a folder of its own.
    shutil.rmtree(place, ignore_errors=True)
    return found


def first_rows(sources: list[str]) -> str:
    """Raises what the run would raise of the first row of each source."""
    with input_errors():
        for source in sources:
            first = next(iter(read_rows(source)), None)
            if isinstance(first, BadRow):
                raise first
            if first is None:
                raise UserError(f"{source}: holds no row")
    return f"the first row of {first_few(sources, 'sources')} can be read"
