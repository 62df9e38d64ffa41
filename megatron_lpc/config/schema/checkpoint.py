"""Checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.idle_rules import NO_CHECKPOINT, NOT_LOADED, NOT_SAVED
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a run starts from and what it saves."""

    save: str | None = option(None, role=Role.RUN)
    """Folder of checkpoints, resolved configuration, metrics and curves; nothing is saved when unset."""

    load: str | None = option(None, role=Role.RUN, evaluation=True)
    """Folder of checkpoints to resume from. `auto`: `save`, when it holds one."""

    load_rng: bool = option(True, role=Role.RUN, idle=NOT_LOADED)
    """Resume with the random generators and the seed of the checkpoint. `--no-load-rng` seeds the generators by `seed`,
    which may then be another."""

    override_resume: list[str] = option([], role=Role.RUN, idle=NOT_LOADED)
    """What a run that resumes may have otherwise than the checkpoint's: any of `data`, `seed`, `batch` and `loss`. In
    other data it continues after as many pairs as it has seen; a stream begins at its start. With another seed the
    generators are seeded by it."""

    pretrained_checkpoint: str | None = option(None, role=Role.RUN, evaluation=True)
    """Checkpoint to start from with its weights only."""

    save_interval: int = option(0, range="[0, inf)", role=Role.RUN, idle=NOT_SAVED)
    """Steps between checkpoints; 0 saves at the end only."""

    keep_last: int = option(0, range="[0, inf)", role=Role.RUN, idle=NOT_SAVED)
    """Latest checkpoints to keep; 0 keeps all."""

    verify_integrity: bool = option(True, role=Role.RUN, idle=NO_CHECKPOINT, evaluation=True)
    """Save checksums of all files with a checkpoint, and compare them before one is loaded."""

    async_save: bool = option(False, role=Role.RUN, idle=NOT_SAVED)
    """Write checkpoints in the background while training continues."""
