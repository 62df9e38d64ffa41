"""What lies beside a checkpoint: the options it was trained with, and the metrics of its run."""

from __future__ import annotations

from pathlib import Path

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.losses import uses_reference
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
    for file in (load / CONFIG_FILE, load / IMPORT_FILE, load.resolve().parent / CONFIG_FILE):
        if file.is_file():
            return file
    raise ConfigError(
        f"--load {load}: has neither {CONFIG_FILE}, as a run, nor {IMPORT_FILE}, as an import; name the options with "
        "--config FILE"
    )


def check_reference_is_known(config: Config, file: Path) -> None:
    """Refuse to compare an import with itself.

    Args:
        file: of the options, as `options_file` finds it.

    Raises:
        ConfigError: the loss compares with a reference, and neither the options nor the import name one.
    """
    is_known = config.training.freeze_backbone or config.loss.reference_load or config.checkpoint.pretrained_checkpoint
    if file.name == IMPORT_FILE and uses_reference(config.loss) and not is_known:
        raise ConfigError(
            f"--loss-type {config.loss.loss_type}: compares with a reference, which an import does not name; set "
            "--reference-load to the checkpoint that its training started from, or --freeze-backbone where it is the "
            "model without its codes; --loss-type and --beta as in its training"
        )


def metrics_file(load: Path) -> Path | None:
    """The metrics of the run; None where there are none, as of an import."""
    for file in (load / METRICS_FILE, load.resolve().parent / METRICS_FILE):
        if file.is_file():
            return file
    return None
