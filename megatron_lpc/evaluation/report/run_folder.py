"""What lies beside a checkpoint: the options it was trained with, and the metrics of its run."""

from __future__ import annotations

from pathlib import Path

from megatron_lpc.config import ConfigError
from megatron_lpc.training.metrics_file import METRICS_FILE

CONFIG_FILE = "config.yaml"
IMPORT_FILE = "model.yaml"
"""What an import leaves in the place of `CONFIG_FILE`."""


def options_file(load: Path) -> Path:
    """The file of options that belongs to a checkpoint.

    Args:
        load: folder of a run, of one of its checkpoints, or of an import.

    Raises:
        ConfigError: there is none.
    """
    for file in (load / CONFIG_FILE, load / IMPORT_FILE, load.parent / CONFIG_FILE):
        if file.is_file():
            return file
    raise ConfigError(
        f"--load {load}: has neither {CONFIG_FILE}, as a run, nor {IMPORT_FILE}, as an import; name the options with "
        "--config FILE"
    )


def metrics_file(load: Path) -> Path | None:
    """The metrics of the run; None where there are none, as of an import."""
    for file in (load / METRICS_FILE, load.parent / METRICS_FILE):
        if file.is_file():
            return file
    return None
