"""Every option of a run, each owned by exactly one section.

A section is a keyword-only dataclass. The name of a field is its YAML key, and its flag with dashes
(`--micro-batch-size`), so no two sections may share a name. The sentence under a field is the flag's help text; what
else is known of the option stands beside it as the arguments of `option` (`megatron_lpc/config/metadata.py`).

Names follow Megatron-LM where it has the option, TRL and Hugging Face where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_lpc.config.schema.checkpoint import CheckpointConfig
from megatron_lpc.config.schema.data import DataConfig
from megatron_lpc.config.schema.latent import LatentConfig
from megatron_lpc.config.schema.logging import LoggingConfig
from megatron_lpc.config.schema.loss import LossConfig
from megatron_lpc.config.schema.model import ModelConfig
from megatron_lpc.config.schema.parallel import ParallelConfig
from megatron_lpc.config.schema.training import TrainingConfig

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LatentConfig",
    "LoggingConfig",
    "LossConfig",
    "ModelConfig",
    "ParallelConfig",
    "TrainingConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
