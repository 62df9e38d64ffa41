"""What `description.json` of a checkpoint may hold, checked when it is read, so that nobody else has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lpc.config import ModelConfig, saved_section
from megatron_lpc.config.saved_options import check_size, options_of_weights
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.typed import check
from megatron_lpc.training.state import unfit_fields

_READ = {
    "data": {"tokenizer_model", "chat_template", "chat_template_date", "shuffle_buffer_size", "group_column"},
    "training": {"seed", "freeze_backbone", "bf16"},
    "loss": {"reference_load"},
    "checkpoint": {"pretrained_checkpoint"},
}
"""Section -> options that are read from a description, besides those that weights depend on."""
_RUN: dict[str, Any] = {
    "run": dict,
    "optimizer_updates": int,
    "scheduler_steps": int,
    "layout": {"world_size": int},
    "options": {
        "data": {"shuffle_buffer_size": int},
        "loss": {"reference_load": str | None},
        "training": {"seed": int},
        "checkpoint": {"pretrained_checkpoint": str | None},
    },
}


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A description whose options are those of the schema.

    Raises:
        Malformed: an option is of another type, or what stands beside the options.
    """
    check(content.get("options", {}), dict[str, dict[str, Any]], f"{path}: options")
    check(content.get("code_names"), list[str] | None, f"{path}: code_names")
    options = dict(content.get("options", {}))
    try:
        for section in ("model", "latent", *_READ):
            if section in options:
                names = options_of_weights(section) | _READ.get(section, set())
                options[section] = saved_section(section, options[section], names)
        if "model" in options:
            check_size(ModelConfig(**{name: options["model"][name] for name in _backbone(options)}))
    except Malformed as error:
        raise Malformed(f"{path}: options: {error}") from error
    return content | {"options": options} if "options" in content else content


def _backbone(options: dict[str, Any]) -> set[str]:
    return options_of_weights("model") & options["model"].keys()


def check_run(description: dict[str, Any], path: Path) -> None:
    """Raise a Malformed where the description of a run lacks what a resumed run reads, or has it of another type."""
    check(description, _RUN, str(path))
    unfit = unfit_fields(description["run"])
    if unfit:
        raise Malformed(f"{path}: run.{unfit[0]} is unknown or of another type")
