"""What can be seen of a damaged checkpoint without reading its tensors; enough where it has no checksums."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from megatron_lpc.config import ConfigError
from megatron_lpc.outside.json_text import read_object
from megatron_lpc.outside.messages import Malformed, reason
from megatron_lpc.training.checkpoint_folder import read_description, read_run_description
from megatron_lpc.training.tensor_index import file_ends, read_tensor_index


def defects(folder: Path, resumes: bool) -> Iterator[str]:
    """A line for each file that is missing, cut off, or not what its name says.

    Args:
        resumes: a run shall go on from it, so it must hold more than weights.
    """
    yield from _format(folder)
    yield from _tensors(folder)
    common = folder / "common.pt"
    if not common.is_file():
        yield f"{common}: is missing"
    elif not zipfile.is_zipfile(common):
        yield f"{common}: is damaged, for it is no file of torch"
    try:
        description = read_run_description(folder) if resumes else read_description(folder)
    except ConfigError as error:
        yield str(error)
        return
    if resumes:
        yield from _random_states(folder, description["layout"]["world_size"])


def _format(folder: Path) -> Iterator[str]:
    """megatron-core's file, by which it knows a checkpoint."""
    path = folder / "metadata.json"
    try:
        read_object(path, {"sharded_backend": str})
    except Malformed as error:
        yield f"{path}: is missing or damaged ({error})"


def _tensors(folder: Path) -> Iterator[str]:
    """The index of tensors, and whether their files are as long as it says."""
    try:
        index = read_tensor_index(folder)
    except ConfigError as error:
        yield str(error)
        return
    for name, end in sorted(file_ends(index).items()):
        path = folder / name
        if not path.is_file():
            yield f"{path}: is missing"
        elif path.stat().st_size < end:
            yield f"{path}: is cut off after {path.stat().st_size} of {end} bytes"


def _random_states(folder: Path, ranks: int) -> Iterator[str]:
    for rank in range(ranks):
        path = folder / f"random_state_{rank:05d}.safetensors"
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            yield f"{path}: is missing or damaged ({reason(error)})"
            return
