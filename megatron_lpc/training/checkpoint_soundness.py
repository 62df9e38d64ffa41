"""What can be seen of a damaged checkpoint without reading its tensors; enough where it has no checksums."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from megatron_lpc.config import ConfigError
from megatron_lpc.training.checkpoint_folder import read_description, read_run_description, read_tensor_index
from megatron_lpc.training.state import unfit_fields


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
    if not resumes:
        return
    wrong = _unfit(description)
    if wrong:
        yield f"{folder / 'description.json'}: is damaged, for {wrong[0]} is missing or of another kind"
    else:
        yield from _random_states(folder, description["layout"]["world_size"])


def _unfit(description: dict[str, Any]) -> list[str]:
    """Names in the description of a run that have no value, or one of another kind."""
    kinds = {"run": dict, "optimizer_updates": int, "scheduler_steps": int, "layout": dict, "options": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(description.get(name), kind)]
    if wrong:
        return wrong
    has_size = isinstance(description["layout"].get("world_size"), int)
    return [f"run.{name}" for name in unfit_fields(description["run"])] + ([] if has_size else ["layout.world_size"])


def _format(folder: Path) -> Iterator[str]:
    """megatron-core's file, by which it knows a checkpoint."""
    path = folder / "metadata.json"
    try:
        is_known = "sharded_backend" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        is_known = False
    if not is_known:
        yield f"{path}: is missing or damaged"


def _tensors(folder: Path) -> Iterator[str]:
    """The index of tensors, and whether their files are as long as it says."""
    try:
        index = read_tensor_index(folder)
    except ConfigError as error:
        yield str(error)
        return
    ends: dict[str, int] = defaultdict(int)
    for place in (index.storage_data or {}).values():
        ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    for name, end in sorted(ends.items()):
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
            yield f"{path}: is missing or damaged ({error})"
