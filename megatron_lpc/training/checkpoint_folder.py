"""Folders of checkpoints: their names, as Megatron-LM's; what lies beside the tensors; how they appear whole.

SAVE/latest_checkpointed_iteration.txt   number of the latest complete checkpoint; written last
SAVE/iter_0000100/                       one checkpoint; it has this name only when it is complete
SAVE/.iter_0000200.tmp/                  one being written, or what a killed process left
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from megatron_lpc.config import ConfigError
from megatron_lpc.files import replace_folder, write_json, write_text
from megatron_lpc.outside.json_text import read_json
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.training.checkpoint_description import check_run, checked

_POINTER = "latest_checkpointed_iteration.txt"
_POINTER_BYTES = 200
_DESCRIPTION = "description.json"
_FORMAT = "metadata.json"  # megatron-core's, written after all tensors.


def resolve_checkpoint(path: str | Path) -> Path:
    """The folder of one checkpoint, given that folder or the one that holds many, whose latest is meant.

    Raises:
        ConfigError: nothing is there, no checkpoint is in it, or the latest is missing or incomplete.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder, so no checkpoint to load")
    if (path / _FORMAT).is_file():
        return path
    if not (path / _POINTER).is_file():
        raise ConfigError(
            f"{path}: holds no checkpoint (neither {_FORMAT} nor {_POINTER}); "
            "give a folder that --save wrote, or an iter_* in it"
        )
    name = latest_name(path)
    if name is None or not (path / name / _FORMAT).is_file():
        others = ", ".join(complete.name for complete in complete_checkpoints(path)) or "none"
        raise ConfigError(
            f"{path / _POINTER}: names {_pointer(path)!r}, which is no complete checkpoint; complete ones: {others}"
        )
    return path / name


def latest_name(root: Path) -> str | None:
    """Name of the folder that the pointer in `root` gives, be it there or not; None where it gives no name.

    Raises:
        OSError: there is no pointer, or it cannot be read.
    """
    text = _pointer(root)
    if re.fullmatch(r"[0-9]{1,18}", text):
        return _name(int(text))
    return text if re.fullmatch(r"\w[\w.-]*", text) else None


def _pointer(root: Path) -> str:
    with (root / _POINTER).open("rb") as file:
        return file.read(_POINTER_BYTES).decode(errors="replace").strip()


def holds_checkpoint(path: str | Path) -> bool:
    """Whether a run has left a checkpoint in this folder, sound or not."""
    path = Path(path)
    return any((path / name).exists() for name in (_POINTER, _FORMAT)) or bool(complete_checkpoints(path))


def open_partial(root: Path, iteration: int) -> Path:
    """Remove what killed saves left, and make the folder in which a checkpoint is written. For one rank only.

    Raises:
        OSError: it cannot be made; `root` does not exist any more, for instance.
    """
    for leftover in root.glob(".iter_*.tmp"):
        shutil.rmtree(leftover)
    partial = partial_folder(root, iteration)
    partial.mkdir()
    return partial


def partial_folder(root: Path, iteration: int) -> Path:
    """Where a checkpoint lies until it is complete."""
    return root / f".{_name(iteration)}.tmp"


def publish(root: Path, iteration: int, keep_last: int) -> None:
    """Give a complete checkpoint its name, point to it, and only then delete older ones. For one rank only.

    Args:
        keep_last: how many to keep, this one included; 0 keeps all. Those of later iterations, which another run left,
            stay.
    """
    replaced = replace_folder(partial_folder(root, iteration), root / _name(iteration))
    write_text(root / _POINTER, f"{iteration}\n")
    shutil.rmtree(replaced, ignore_errors=True)
    older = [folder for folder in complete_checkpoints(root) if _number(folder) <= iteration]
    if keep_last:
        for folder in older[:-keep_last]:
            shutil.rmtree(folder)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write what is not a tensor: progress, parallel layout and all options."""
    write_json(folder / _DESCRIPTION, description)


def read_description(folder: Path) -> dict[str, Any]:
    """What `write_description` wrote; empty where another program wrote the checkpoint.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = folder / _DESCRIPTION
    if not path.exists():
        return {}
    try:
        return checked(read_json(path), path)
    except Malformed as error:
        raise ConfigError(f"{error}; load another checkpoint") from error


def read_run_description(folder: Path) -> dict[str, Any]:
    """The description of a checkpoint that a run saved.

    Raises:
        ConfigError: the checkpoint holds only weights, the file cannot be read, or lacks what a resumed run reads.
    """
    description = read_description(folder)
    if "run" not in description:
        raise ConfigError(f"{folder}: holds only weights; start from it with --pretrained-checkpoint instead of --load")
    try:
        check_run(description, folder / _DESCRIPTION)
    except Malformed as error:
        raise ConfigError(f"{error}; load another checkpoint") from error
    return description


def _name(iteration: int) -> str:
    return f"iter_{iteration:07d}"


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("iter_"))


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints of steps, oldest first."""
    numbered = [folder for folder in root.glob("iter_*") if folder.name.removeprefix("iter_").isdecimal()]
    return sorted((folder for folder in numbered if (folder / _FORMAT).is_file()), key=_number)
