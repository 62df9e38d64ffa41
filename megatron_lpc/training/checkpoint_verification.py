"""Is a checkpoint as it was written? Asked before it is loaded, by all ranks together."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_lpc.command_line import first_few, warn
from megatron_lpc.config import ConfigError
from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
from megatron_lpc.training.checkpoint_integrity import INTEGRITY, Manifest, damaged_files, read_manifest
from megatron_lpc.training.checkpoint_soundness import defects
from megatron_lpc.training.setup import RunContext

_verified: set[Path] = set()
"""A run reads the weights of one checkpoint for its policy and for its reference."""


def open_checkpoint(path: str | Path, context: RunContext, resumes: bool = False) -> Path:
    """The folder of one checkpoint, as `resolve_checkpoint` gives it, whose files are what was written.

    Collectives: those of `damage`.

    Args:
        resumes: as `damage` takes it.

    Raises:
        ConfigError: on all ranks alike; as `resolve_checkpoint`, or a file is damaged or missing.
    """
    folder = resolve_checkpoint(path)
    if folder.resolve() in _verified:
        return folder
    problems = damage(folder, context, resumes)
    if problems:
        raise ConfigError(first_few(problems, "files"))
    _verified.add(folder.resolve())
    return folder


def damage(folder: Path, context: RunContext, resumes: bool = False) -> list[str]:
    """A line for each file of a checkpoint that is not as it was written, the same on all ranks.

    Rank 0 looks at what can be seen without reading tensors. Then each rank compares a share of all files with their
    checksums, unless `verify_integrity` is off; where there are none, one line says so.

    Collectives: two gathers of objects over the world, between hosts.

    Args:
        resumes: as `defects` takes it.
    """
    found = list(defects(folder, resumes)) if dist.get_rank() == 0 else []
    manifest = None
    if context.config.checkpoint.verify_integrity:
        manifest, problem = _read(folder)
        found += [problem] if problem else []
    problems = _from_all_ranks(found, context)
    if problems or not context.config.checkpoint.verify_integrity:
        return problems
    share = [] if manifest is None else _damage(folder, manifest)
    problems = _from_all_ranks([f"{folder}: {problem}" for problem in share], context)
    if manifest is None:
        warn(f"{folder}: is not verified, for it holds no {INTEGRITY} with checksums of its files")
    return problems


def _read(folder: Path) -> tuple[Manifest | None, str | None]:
    """The manifest, or what is wrong with it."""
    try:
        return read_manifest(folder), None
    except ConfigError as error:
        return None, str(error)


def _damage(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with this rank's share of the files: every so many of them, the largest ones first."""

    def size(name: str) -> int:
        file = folder / name
        return file.stat().st_size if file.is_file() else 0

    # By name where sizes are equal: all ranks need the same order.
    names = sorted(manifest.files, key=lambda name: (-size(name), name))
    return damaged_files(folder, manifest, names[dist.get_rank() :: dist.get_world_size()])


def _from_all_ranks(found: list[str], context: RunContext) -> list[str]:
    """What the ranks have found, once. Collectives: an all-gather of objects over the world, between hosts."""
    of_ranks: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, found, group=context.groups.host)
    return list(dict.fromkeys(problem for of_rank in of_ranks for problem in of_rank))
